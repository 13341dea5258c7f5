/** Opens weights of any supported format, by the name of the file, or by what a folder holds. */

import { FormatError } from "../../tensor/index.ts";
import { openGguf } from "./gguf.ts";
import { openLlama2c } from "./llama2c.ts";
import { openSafetensors, openShardedSafetensors } from "./safetensors.ts";
import type { SourceFolder } from "./sourceFolder.ts";
import type { WeightsFile } from "./weightsFile.ts";

/**
 * Opens `fileName` in `folder`: `.gguf`, `.safetensors`, `.safetensors.index.json`, or `.bin` (llama2.c). Without a name the folder must hold
 * exactly one model. Throws FormatError naming the file.
 */
export async function openWeights(folder: SourceFolder, fileName?: string): Promise<WeightsFile> {
  const name = fileName ?? findWeights(folder);
  if (name.endsWith(".safetensors.index.json")) return openShardedSafetensors(folder, name);
  if (name.endsWith(".gguf")) return openGguf(await folder.open(name), folder);
  if (name.endsWith(".safetensors")) return openSafetensors(await folder.open(name));
  if (name.endsWith(".bin")) return openLlama2c(await folder.open(name));
  throw new FormatError(
    `${name} is no weights file: names end in .gguf, .safetensors, .safetensors.index.json or .bin (llama2.c)`,
  );
}

/** The name of the one model in a folder. safetensors go before GGUF, as they come with a config and a tokenizer. */
function findWeights(folder: SourceFolder): string {
  const candidates = [
    folder.names.filter((name) => name === "model.safetensors.index.json"),
    folder.names.filter((name) => name === "model.safetensors"),
    folder.names.filter((name) => name.endsWith(".gguf") && !/-(?!00001)\d{5}-of-\d{5}\.gguf$/.test(name)),
  ];
  for (const names of candidates) {
    if (names.length === 1) return names[0];
    if (names.length > 1)
      throw new FormatError(`${folder.label} holds several models: name one of ${names.join(", ")}`);
  }
  throw new FormatError(`${folder.label} holds no model: looked for model.safetensors, its index, and *.gguf`);
}
