/**
 * The tensors a model of a given config has, under Kvasir's own names, with their shapes. Where a file keeps them, and under which name, is the
 * matter of tensorNames.ts.
 */

import type { Shape } from "../../tensor/index.ts";
import type { ModelConfig } from "./modelConfig.ts";

/** A tensor that a model needs. Matrices are [out, in], as y = W x. */
export interface ExpectedTensor {
  /** Kvasir's name: `layers.3.attention.q`. */
  readonly name: string;
  readonly shape: Shape;
}

/**
 * Every tensor of the model, in the order of the forward pass: `embedding`; for each layer N `layers.N.attentionNorm`,
 * `layers.N.attention.{q,k,v,o}` and, where the config says so, `{qBias,kBias,vBias,oBias}`, `{qNorm,kNorm}`, `layers.N.postAttentionNorm`;
 * `layers.N.mlpNorm`, `layers.N.mlp.{gate,up,down}`, `{gateBias,upBias,downBias}`, `layers.N.postMlpNorm`; `finalNorm`; `output` unless tied.
 */
export function expectedTensors(config: ModelConfig): ExpectedTensor[] {
  const { hiddenSize, vocabSize } = config;
  const tensors: ExpectedTensor[] = [{ name: "embedding", shape: [vocabSize, hiddenSize] }];
  for (let layer = 0; layer < config.numLayers; layer++) {
    for (const { name, shape } of layerTensors(config)) tensors.push({ name: `layers.${layer}.${name}`, shape });
  }
  tensors.push({ name: "finalNorm", shape: [hiddenSize] });
  if (!config.tieWordEmbeddings) tensors.push({ name: "output", shape: [vocabSize, hiddenSize] });
  return tensors;
}

function layerTensors(config: ModelConfig): ExpectedTensor[] {
  const { hiddenSize, intermediateSize, headDim } = config;
  const qSize = config.numAttentionHeads * headDim;
  const kvSize = config.numKvHeads * headDim;
  const tensors: ExpectedTensor[] = [];
  const add = (name: string, ...shape: number[]) => tensors.push({ name, shape });

  add("attentionNorm", hiddenSize);
  add("attention.q", qSize, hiddenSize);
  add("attention.k", kvSize, hiddenSize);
  add("attention.v", kvSize, hiddenSize);
  if (config.hasQkvBias) {
    add("attention.qBias", qSize);
    add("attention.kBias", kvSize);
    add("attention.vBias", kvSize);
  }
  if (config.hasQkNorm) {
    add("attention.qNorm", headDim);
    add("attention.kNorm", headDim);
  }
  add("attention.o", hiddenSize, qSize);
  if (config.hasAttentionOutputBias) add("attention.oBias", hiddenSize);
  if (config.normLayout === "sandwich") add("postAttentionNorm", hiddenSize);

  add("mlpNorm", hiddenSize);
  add("mlp.gate", intermediateSize, hiddenSize);
  add("mlp.up", intermediateSize, hiddenSize);
  add("mlp.down", hiddenSize, intermediateSize);
  if (config.hasMlpBias) {
    add("mlp.gateBias", intermediateSize);
    add("mlp.upBias", intermediateSize);
    add("mlp.downBias", hiddenSize);
  }
  if (config.normLayout === "sandwich") add("postMlpNorm", hiddenSize);
  return tensors;
}
