/** From load options to a running model: fills in the defaults and puts what `models` loads into the engine's terms. */

import { filesFolder, type SourceFolder } from "../models/formats/index.ts";
import { type LoadedModel, loadModel } from "../models/loadModel.ts";
import { ArgumentError } from "../tensor/errors.ts";
import type { EngineBackend, EngineTokenizer, LoadBackend } from "./backend.ts";
import type { PlainLoadOptions } from "./messages.ts";
import { checkLoadFields } from "./optionFields.ts";
import type { LoadProgress, ModelDescription } from "./types.ts";

const DEFAULTS = {
  device: "auto",
  maxNumTokens: 8192,
  pageSize: 16,
  cacheType: "f16",
  activations: "int8",
  maxNumBatchedTokens: 512,
  maxNumSeqs: 32,
} as const;

/** Progress messages come at most this often. */
const PROGRESS_INTERVAL_MS = 50;

/** Loads from files alone; a path needs a file system, which loadBackend.node.ts has. */
export const loadBackend: LoadBackend = (model, options, onProgress) => {
  if (typeof model !== "string") return loadBackendFrom(filesFolder(model), undefined, options, onProgress);
  return Promise.reject(
    new ArgumentError(`model = "${model}" is a path: without a file system, give the files themselves`),
  );
};

/** Loads `fileName`, or the one model of the folder. Rejects with what `loadModel` rejects with, and ArgumentError for an unknown option value. */
export async function loadBackendFrom(
  folder: SourceFolder,
  fileName: string | undefined,
  options: PlainLoadOptions,
  onProgress: (progress: LoadProgress) => void,
): Promise<EngineBackend> {
  checkLoadFields(options);
  const { device, threads, ...sizes } = { ...DEFAULTS, ...definedOf(options) };
  requireOneOf("device", device, ["auto", "cpu"]);
  requireOneOf("cacheType", sizes.cacheType, ["f16", "f32"]);
  requireOneOf("activations", sizes.activations, ["int8", "int16", "f32"]);
  onProgress({ stage: "read", loadedBytes: 0, totalBytes: 0 });
  let lastReport = 0;
  const model = await loadModel(folder, fileName, {
    ...sizes,
    ...(threads === undefined ? {} : { threads }),
    onProgress(loadedBytes, totalBytes) {
      const now = performance.now();
      if (loadedBytes < totalBytes && now - lastReport < PROGRESS_INTERVAL_MS) return;
      lastReport = now;
      onProgress({ stage: "read", loadedBytes, totalBytes });
    },
  });
  const { runner, cacheBytes } = model;
  const { maxNumBatchedTokens, maxNumSeqs } = sizes;
  const description = describeModel(model, fileName ?? folder.label);
  return {
    runner,
    tokenizer: model.tokenizer ?? NO_TOKENIZER,
    description,
    cacheBytes,
    maxNumBatchedTokens,
    maxNumSeqs,
  };
}

function describeModel({ config, runner, tokenizer, device, ...model }: LoadedModel, label: string): ModelDescription {
  const { family, vocabSize, hiddenSize, numLayers, numAttentionHeads, numKvHeads, headDim } = config;
  const simd = device.features.relaxedSimd ? "relaxed SIMD" : "SIMD";
  return {
    name: label.split(/[\\/]/).findLast((part) => part !== "") ?? label,
    architecture: family,
    numParameters: model.numParameters,
    weightBytes: model.weightBytes,
    vocabSize,
    hiddenSize,
    numLayers,
    numAttentionHeads,
    numKvHeads,
    headDim,
    contextLength: config.maxPositionEmbeddings,
    cacheBytesPerToken: model.cacheBytes / (runner.numPages * runner.pageSize),
    hasChatTemplate: tokenizer?.chatTemplate !== undefined,
    eosTokenIds: [...new Set([...config.eosTokenIds, ...(tokenizer?.eosIds ?? [])])],
    device: `cpu, ${device.threads} ${device.threads === 1 ? "thread" : "threads"}, ${simd}`,
    threads: device.threads,
  };
}

/** For a model without a tokenizer: tokens in, tokens out, no text. */
const NO_TOKENIZER: EngineTokenizer = {
  encode() {
    throw new ArgumentError("prompt is text, but this model came without a tokenizer: give token numbers");
  },
  decode() {
    throw new ArgumentError("this model came without a tokenizer: its tokens have no text");
  },
  incrementalDecoder: () => ({ push: () => "", flush: () => "" }),
  chatTemplate: undefined,
};

/** Options given as undefined take their defaults, too. */
function definedOf(options: PlainLoadOptions): PlainLoadOptions {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
}

function requireOneOf(name: string, value: string, allowed: readonly string[]): void {
  if (allowed.includes(value)) return;
  throw new ArgumentError(`${name} = "${value}" must be ${allowed.map((choice) => `"${choice}"`).join(" or ")}`);
}
