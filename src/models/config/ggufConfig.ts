/**
 * From GGUF metadata to a ModelConfig, with the conventions of llama.cpp's converter where the metadata is silent. RoPE is in ggufRope.ts.
 */

import { FormatError } from "../../tensor/index.ts";
import type { WeightsFile } from "../formats/index.ts";
import { Fields } from "./fields.ts";
import { ggufRopes } from "./ggufRope.ts";
import type { ModelConfig, ModelFamily } from "./modelConfig.ts";
import { requireConsistent, requireHeadDim } from "./validate.ts";

/** Mistral's files say llama. */
const FAMILIES: ReadonlyMap<unknown, ModelFamily> = new Map<unknown, ModelFamily>([
  ["llama", "llama"],
  ["qwen2", "qwen2"],
  ["qwen3", "qwen3"],
  ["gemma2", "gemma2"],
  ["gemma3", "gemma3"],
  ["phi3", "phi3"],
]);

/**
 * The model in a GGUF file. It reads the small tensors that hold RoPE divisors; biases and tied embeddings are known from which tensors there are.
 * Throws FormatError for an unknown architecture and for keys that are missing, wrong or not supported.
 */
export async function ggufConfig(file: WeightsFile): Promise<ModelConfig> {
  const { label, metadata, tensors } = file;
  const architecture = metadata.get("general.architecture");
  const family = FAMILIES.get(architecture);
  if (family === undefined) {
    const known = [...FAMILIES.keys()].join(", ");
    throw new FormatError(`${label}: general.architecture is ${JSON.stringify(architecture)}: supported are ${known}`);
  }
  const fields = new Fields(label, (key) => metadata.get(key), `${String(architecture)}.`);
  const tokenizer = new Fields(label, (key) => metadata.get(key), "tokenizer.ggml.");
  if (typeof fields.get("expert_count") === "number" && fields.get("expert_count") !== 0) {
    throw fields.error("expert_count", fields.get("expert_count"), "0 (mixtures of experts are not supported)");
  }

  const hiddenSize = fields.size("embedding_length");
  const numLayers = fields.numLayers("block_count");
  const numAttentionHeads = sameForAll(fields, "attention.head_count");
  const headDim = fields.size("attention.key_length", hiddenSize / numAttentionHeads);
  if (fields.size("attention.value_length", headDim) !== headDim) {
    throw fields.error(
      "attention.value_length",
      fields.get("attention.value_length"),
      `attention.key_length = ${headDim}`,
    );
  }
  requireHeadDim(label, headDim);
  const isGemma = family === "gemma2" || family === "gemma3";
  const windows = slidingWindows(fields, family, numLayers);
  const ropes = await ggufRopes(file, fields, family, headDim);
  const hasBias = (name: string) => tensors.has(`blk.0.${name}.bias`);

  const config: ModelConfig = {
    family,
    vocabSize: vocabSize(file, fields),
    hiddenSize,
    intermediateSize: sameForAll(fields, "feed_forward_length"),
    numLayers,
    numAttentionHeads,
    numKvHeads: sameForAll(fields, "attention.head_count_kv", numAttentionHeads),
    headDim,
    maxPositionEmbeddings: fields.size("context_length"),
    rmsNormEps: fields.positive("attention.layer_norm_rms_epsilon"),
    rmsNormWeightOffset: 0,
    normLayout: isGemma ? "sandwich" : "pre",
    activation: isGemma ? "geluTanh" : "silu",
    embeddingScale: isGemma ? Math.fround(Math.sqrt(hiddenSize)) : 1,
    tieWordEmbeddings: !tensors.has("output.weight"),
    attentionScale: attentionScale(fields, family, { hiddenSize, numLayers, numAttentionHeads, headDim }),
    attentionSoftCap: family === "gemma2" ? fields.positive("attn_logit_softcapping", 50) : null,
    finalLogitSoftCap:
      family === "gemma2"
        ? fields.positive("final_logit_softcapping", 30)
        : (fields.optionalPositive("final_logit_softcapping") ?? null),
    hasQkNorm: family === "qwen3" || family === "gemma3",
    hasQkvBias: hasBias("attn_q"),
    hasAttentionOutputBias: hasBias("attn_output"),
    hasMlpBias: hasBias("ffn_gate"),
    layers: windows.map((slidingWindow) => ({
      slidingWindow,
      rope: slidingWindow === null ? ropes.full : ropes.sliding,
    })),
    bosTokenId: tokenizer.tokenIds("bos_token_id")[0] ?? null,
    eosTokenIds: [...new Set(["eos", "eot", "eom"].flatMap((name) => tokenizer.tokenIds(`${name}_token_id`)))],
  };
  requireConsistent(label, config);
  return config;
}

/** A size that may be given once or for each layer; layers that differ are not supported. */
function sameForAll(fields: Fields, key: string, fallback?: number): number {
  const value = fields.get(key);
  if (typeof value !== "object" || !ArrayBuffer.isView(value)) return fields.size(key, fallback);
  const sizes = [...new Set(value as unknown as Iterable<number>)]; // a typed array: GGUF's reader makes no other view
  if (sizes.length === 1 && typeof sizes[0] === "number" && sizes[0] >= 1) return sizes[0];
  throw fields.error(key, sizes, "the same positive integer for every layer");
}

function vocabSize(file: WeightsFile, fields: Fields): number {
  const tokens = file.metadata.get("tokenizer.ggml.tokens");
  const fromTokens = typeof tokens === "object" && tokens !== null && "length" in tokens ? tokens.length : undefined;
  const fallback = fromTokens ?? file.tensors.get("token_embd.weight")?.shape[0];
  return fields.size("vocab_size", typeof fallback === "number" ? fallback : undefined);
}

function slidingWindows(fields: Fields, family: ModelFamily, numLayers: number): (number | null)[] {
  const layers = Array.from({ length: numLayers }, (_, layer) => layer);
  const hasWindow =
    fields.get("attention.sliding_window") !== undefined && fields.get("attention.sliding_window") !== 0;
  const isGemma = family === "gemma2" || family === "gemma3";
  if (!hasWindow && !isGemma) return layers.map(() => null);
  const window = fields.size("attention.sliding_window", family === "gemma2" ? 4096 : undefined);
  const pattern = fields.get("attention.sliding_window_pattern");
  if (Array.isArray(pattern)) {
    if (pattern.length !== numLayers || !pattern.every((entry) => typeof entry === "boolean")) {
      throw fields.error("attention.sliding_window_pattern", pattern, `an integer or ${numLayers} booleans`);
    }
    return pattern.map((isSliding) => (isSliding ? window : null));
  }
  if (!isGemma) return layers.map(() => window);
  const period = fields.size("attention.sliding_window_pattern", family === "gemma2" ? 2 : 6);
  return layers.map((layer) => ((layer + 1) % period === 0 ? null : window));
}

/** The 27B models of Gemma scale by the width of the residual stream over the heads; their files do not say so, llama.cpp knows them by depth. */
function attentionScale(
  fields: Fields,
  family: ModelFamily,
  size: { hiddenSize: number; numLayers: number; numAttentionHeads: number; headDim: number },
): number {
  const stated = fields.get("attention.scale");
  if (stated !== undefined && stated !== 0) return fields.positive("attention.scale");
  const is27B = (family === "gemma2" && size.numLayers === 46) || (family === "gemma3" && size.numLayers === 62);
  return (is27B ? size.hiddenSize / size.numAttentionHeads : size.headDim) ** -0.5;
}
