/** From the header of a llama2.c checkpoint to a ModelConfig. */

import type { WeightsFile } from "../formats/index.ts";
import { Fields } from "./fields.ts";
import type { ModelConfig } from "./modelConfig.ts";
import { requireConsistent } from "./validate.ts";

/** The Llama 2 layout that llama2.c trains: neighbouring channels rotate together, token 1 begins a text, token 2 ends it. */
export function llama2cConfig(file: WeightsFile): ModelConfig {
  const fields = new Fields(file.label, (key) => file.metadata.get(key), "llama2c.");
  const hiddenSize = fields.size("dim");
  const numAttentionHeads = fields.size("numHeads");
  const headDim = hiddenSize / numAttentionHeads;
  const rope = {
    headDim,
    rotaryDim: headDim,
    style: "interleaved",
    theta: 10_000,
    scaling: { type: "default" },
  } as const;
  const config: ModelConfig = {
    family: "llama",
    vocabSize: fields.size("vocabSize"),
    hiddenSize,
    intermediateSize: fields.size("hiddenDim"),
    numLayers: fields.numLayers("numLayers"),
    numAttentionHeads,
    numKvHeads: fields.size("numKvHeads"),
    headDim,
    maxPositionEmbeddings: fields.size("maxSeqLen"),
    rmsNormEps: 1e-5,
    rmsNormWeightOffset: 0,
    normLayout: "pre",
    activation: "silu",
    embeddingScale: 1,
    tieWordEmbeddings: fields.boolean("isTied", true),
    attentionScale: headDim ** -0.5,
    attentionSoftCap: null,
    finalLogitSoftCap: null,
    hasQkNorm: false,
    hasQkvBias: false,
    hasAttentionOutputBias: false,
    hasMlpBias: false,
    layers: Array.from({ length: fields.numLayers("numLayers") }, () => ({ slidingWindow: null, rope })),
    bosTokenId: 1,
    eosTokenIds: [2],
  };
  requireConsistent(file.label, config);
  return config;
}
