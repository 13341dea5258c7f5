/** From a folder of files to a model that runs: config, weights on a device, tokenizer, runner. Files on disk: formats/file.node.ts. */

import { CpuDevice } from "../devices/index.ts";
import type { ActivationPrecision } from "../ops/matmul/index.ts";
import { ArgumentError, FormatError } from "../tensor/index.ts";
import { type ModelConfig, openModel } from "./config/index.ts";
import { parseJsonObject, readJsonFile, type SourceFolder, type WeightsFile } from "./formats/index.ts";
import { cacheBytesPerToken } from "./network/buffers.ts";
import { CpuRunner } from "./network/cpuRunner.ts";
import { loadWeights } from "./network/weights.ts";
import type { ModelRunner } from "./runner.ts";
import { loadTokenizerJson, type Tokenizer, tokenizerFromGguf, tokenizerFromLlama2c } from "./tokenizer/index.ts";

/** How to load a model, and the sizes that stay fixed from then on. Counts are integers of at least 1. */
export interface LoadModelOptions {
  /** Threads of the CPU device. Default: the cores available. */
  readonly threads?: number;
  /** False: kernels without relaxed SIMD. */
  readonly relaxedSimd?: boolean;
  /** Capacity of the key/value cache in tokens, rounded up to whole pages. */
  readonly maxNumTokens: number;
  /** Tokens of a cache page. */
  readonly pageSize: number;
  /** Element type of cached keys and values. */
  readonly cacheType: "f32" | "f16";
  /** What quantised weights are multiplied with. */
  readonly activations: ActivationPrecision;
  /** Most tokens of one batch; the buffers are made for it. */
  readonly maxNumBatchedTokens: number;
  /** Told while weights are read, in bytes of the file. */
  onProgress?(loadedBytes: number, totalBytes: number): void;
  /** Ends the loading, which then rejects with the signal's reason and keeps nothing. */
  readonly signal?: AbortSignal;
}

/** A model, ready to run. Closing the runner closes the device. */
export interface LoadedModel {
  readonly config: ModelConfig;
  readonly runner: ModelRunner;
  /** Undefined where the folder holds no tokenizer: the model then takes token numbers only. */
  readonly tokenizer: Tokenizer | undefined;
  /** Weights in the file; one that is used twice counts once. */
  readonly numParameters: number;
  /** Bytes that the weights take on the device. */
  readonly weightBytes: number;
  /** Bytes of all cache pages, over all layers. */
  readonly cacheBytes: number;
  readonly device: CpuDevice;
}

/** Loads `fileName`, or the one model of the folder. Throws FormatError for what a file lacks, CapacityError when memory is short. */
export async function loadModel(
  folder: SourceFolder,
  fileName: string | undefined,
  options: LoadModelOptions,
): Promise<LoadedModel> {
  for (const name of ["maxNumTokens", "pageSize", "maxNumBatchedTokens"] as const) {
    if (!Number.isInteger(options[name]) || options[name] < 1)
      throw new ArgumentError(`${name} must be a positive integer, got ${options[name]}`);
  }
  const { config, tensors, weights: file } = await openModel(folder, fileName);
  try {
    const device = await CpuDevice.create({ threads: options.threads, relaxedSimd: options.relaxedSimd });
    try {
      const weights = await loadWeights(device, config, tensors, {
        precision: options.activations,
        onProgress: options.onProgress,
        signal: options.signal,
      });
      const numPages = Math.ceil(options.maxNumTokens / options.pageSize);
      const runner = new CpuRunner(device, config, weights, {
        numPages,
        pageSize: options.pageSize,
        storage: options.cacheType,
        maxNumBatchedTokens: options.maxNumBatchedTokens,
      });
      return {
        config,
        runner,
        tokenizer: await readTokenizer(folder, file, config),
        numParameters: [...tensors.values()].reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
        weightBytes: weights.numBytes,
        cacheBytes: numPages * options.pageSize * cacheBytesPerToken(config, options.cacheType),
        device,
      };
    } catch (error) {
      await device.close();
      throw error;
    }
  } finally {
    await file.close();
  }
}

/** Larger than any tokenizer, small enough to be read whole. */
const maxTokenizerBytes = 512 * 2 ** 20;

async function readTokenizer(
  folder: SourceFolder,
  file: WeightsFile,
  config: ModelConfig,
): Promise<Tokenizer | undefined> {
  if (file.format === "gguf")
    return file.metadata.has("tokenizer.ggml.model") ? tokenizerFromGguf(file.metadata) : undefined;
  if (folder.names.includes("tokenizer.json")) {
    const tokenizerJson = parseJsonObject(
      "tokenizer.json",
      new TextDecoder().decode(await readWhole(folder, "tokenizer.json")),
    );
    const tokenizerConfig = folder.names.includes("tokenizer_config.json")
      ? await readJsonFile(folder, "tokenizer_config.json", "the folder")
      : undefined;
    const template = folder.names.includes("chat_template.jinja")
      ? new TextDecoder().decode(await readWhole(folder, "chat_template.jinja"))
      : undefined;
    return loadTokenizerJson(tokenizerJson, tokenizerConfig, template);
  }
  if (file.format !== "llama2c") return undefined;
  const name = folder.names.find((candidate) => /^tok.*\.bin$/.test(candidate));
  return name === undefined ? undefined : tokenizerFromLlama2c(await readWhole(folder, name), config.vocabSize);
}

async function readWhole(folder: SourceFolder, name: string): Promise<Uint8Array> {
  const source = await folder.open(name);
  try {
    if (source.size > maxTokenizerBytes) {
      throw new FormatError(`${name} has ${source.size} bytes: a file of that name has at most ${maxTokenizerBytes}`);
    }
    return await source.read(0, source.size);
  } finally {
    await source.close();
  }
}
