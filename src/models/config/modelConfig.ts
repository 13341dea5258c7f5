/**
 * What a decoder-only language model is, as plain data: everything the forward pass must know beside the weights. The readers beside this file
 * make it from a config.json or from GGUF metadata; nothing here depends on where it came from.
 */

import type { Activation } from "../../ops/gatedActivation/contract.ts";
import type { RopeSpec } from "../../ops/rope/contract.ts";

/** The model families Kvasir runs. */
export type ModelFamily = "llama" | "mistral" | "qwen2" | "qwen3" | "gemma2" | "gemma3" | "phi3";

/** Every family, in the order error messages list them. */
export const modelFamilies: readonly ModelFamily[] = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"];

/** What may differ from one layer to the next. */
export interface LayerConfig {
  /** Keys a query sees, its own included; null: all before it. */
  readonly slidingWindow: number | null;
  readonly rope: RopeSpec;
}

/** A model's shape and constants. Dimensions count elements; token ids index the vocabulary. */
export interface ModelConfig {
  readonly family: ModelFamily;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numAttentionHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Longest context the model was made for, in tokens. */
  readonly maxPositionEmbeddings: number;
  readonly rmsNormEps: number;
  /** What is added to a norm's stored weight: 1 for Gemma in safetensors, 0 elsewhere (GGUF files hold Gemma's weights with the 1 added). */
  readonly rmsNormWeightOffset: 0 | 1;
  /**
   * "pre": attention and MLP each have one norm before them. "sandwich": another one after them, before the residual sum (Gemma 2 and 3:
   * tensors postAttentionNorm and postMlpNorm).
   */
  readonly normLayout: "pre" | "sandwich";
  /** The nonlinearity of the gated MLP: down(activation(gate x) * up x). */
  readonly activation: Activation;
  /** Factor on the embedding rows (Gemma: sqrt(hiddenSize)); 1 elsewhere. */
  readonly embeddingScale: number;
  /** True: the output matrix is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Factor on q k before the soft cap. The attention factor of yarn and longrope is not in it: it belongs to the RoPE tables. */
  readonly attentionScale: number;
  /** cap * tanh(x / cap) on the scaled attention logits; null: none. */
  readonly attentionSoftCap: number | null;
  /** The same on the output logits. */
  readonly finalLogitSoftCap: number | null;
  /** RMS norm of each query and key head before RoPE (qNorm, kNorm of headDim weights). */
  readonly hasQkNorm: boolean;
  readonly hasQkvBias: boolean;
  readonly hasAttentionOutputBias: boolean;
  readonly hasMlpBias: boolean;
  /** One entry a layer. */
  readonly layers: readonly LayerConfig[];
  readonly bosTokenId: number | null;
  /** Tokens that end a text; empty when the file names none. */
  readonly eosTokenIds: readonly number[];
}
