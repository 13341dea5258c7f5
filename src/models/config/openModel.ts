/**
 * From a folder of files to a model: its config, and each of its tensors under Kvasir's own name. Tokenizers are src/models/tokenizer's.
 */

import { openWeights, readJsonFile, type SourceFolder, type TensorEntry, type WeightsFile } from "../formats/index.ts";
import { ggufConfig } from "./ggufConfig.ts";
import { hfConfig } from "./hfConfig.ts";
import { llama2cConfig } from "./llama2cConfig.ts";
import { locateTensors } from "./locateTensors.ts";
import type { ModelConfig } from "./modelConfig.ts";

/** A model whose files are open; no weight is read yet. */
export interface ModelFiles {
  readonly config: ModelConfig;
  /** Kvasir's name -> where it lies: exactly those of `expectedTensors(config)`, in their shapes. */
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly weights: WeightsFile;
}

/**
 * Opens the model in `folder`: `fileName` if given, else the one model it holds. Checkpoints in safetensors need a config.json beside them.
 * The caller closes `weights`. Throws FormatError naming the file, key or tensor at fault.
 */
export async function openModel(folder: SourceFolder, fileName?: string): Promise<ModelFiles> {
  const weights = await openWeights(folder, fileName);
  try {
    const config = await readConfig(folder, weights);
    return { config, tensors: locateTensors(weights, config), weights };
  } catch (error) {
    await weights.close();
    throw error;
  }
}

async function readConfig(folder: SourceFolder, weights: WeightsFile): Promise<ModelConfig> {
  switch (weights.format) {
    case "gguf":
      return ggufConfig(weights);
    case "llama2c":
      return llama2cConfig(weights);
    case "safetensors": {
      const json = await readJsonFile(folder, "config.json", weights.label);
      const hasGeneration = folder.names.includes("generation_config.json");
      const generation = hasGeneration ? await readJsonFile(folder, "generation_config.json", "the folder") : undefined;
      return hfConfig(json, "config.json", generation);
    }
  }
}
