/** From a Hugging Face config.json to a ModelConfig. RoPE settings are in hfRope.ts, window patterns in hfWindows.ts. */

import type { Activation } from "../../ops/gatedActivation/contract.ts";
import { FormatError } from "../../tensor/index.ts";
import { isJsonObject, type JsonObject } from "../formats/index.ts";
import { Fields } from "./fields.ts";
import { hfRopes } from "./hfRope.ts";
import { hfSlidingWindows } from "./hfWindows.ts";
import { type ModelConfig, type ModelFamily, modelFamilies } from "./modelConfig.ts";
import { requireConsistent, requireHeadDim } from "./validate.ts";

const FAMILIES: ReadonlyMap<unknown, ModelFamily> = new Map<unknown, ModelFamily>([
  ["llama", "llama"],
  ["mistral", "mistral"],
  ["qwen2", "qwen2"],
  ["qwen3", "qwen3"],
  ["gemma2", "gemma2"],
  ["gemma3", "gemma3"],
  ["gemma3_text", "gemma3"],
  ["phi3", "phi3"],
]);

const ACTIVATIONS: ReadonlyMap<string, Activation> = new Map<string, Activation>([
  ["silu", "silu"],
  ["swish", "silu"],
  ["gelu", "geluErf"],
  ["gelu_new", "geluTanh"],
  ["gelu_fast", "geluTanh"],
  ["gelu_pytorch_tanh", "geluTanh"],
  ["relu", "relu"],
]);

/** What Gemma3TextConfig assumes: the text part of multimodal checkpoints is written without values that equal these. */
const GEMMA3_DEFAULTS: JsonObject = {
  vocab_size: 262_208,
  num_attention_heads: 8,
  num_key_value_heads: 4,
  head_dim: 256,
  max_position_embeddings: 131_072,
};

/**
 * The model that a config.json describes, in the spelling of transformers 5 or of the years before. `generationConfig` (generation_config.json)
 * only adds end tokens. Throws FormatError for an unknown architecture, and for values that are missing, wrong or not supported.
 */
export function hfConfig(json: JsonObject, label = "config.json", generationConfig?: JsonObject): ModelConfig {
  const family = FAMILIES.get(json.model_type);
  if (family === undefined) {
    throw new FormatError(
      `${label}: model_type is ${JSON.stringify(json.model_type)}: supported are ${modelFamilies.join(", ")}`,
    );
  }
  const text = isJsonObject(json.text_config) ? json.text_config : json;
  const defaults = family === "gemma3" ? GEMMA3_DEFAULTS : {};
  const fields = new Fields(label, (key) => text[key] ?? defaults[key]);
  refuseUnsupported(fields, json);

  const hiddenSize = fields.size("hidden_size");
  const numLayers = fields.numLayers("num_hidden_layers");
  const numAttentionHeads = fields.size("num_attention_heads");
  const headDim = fields.size("head_dim", defaultHeadDim(family, hiddenSize, numAttentionHeads));
  requireHeadDim(label, headDim);
  const isGemma = family === "gemma2" || family === "gemma3";
  const hasAttentionBias = family !== "mistral" && family !== "phi3" && fields.boolean("attention_bias", false);
  const ropes = hfRopes(fields, family, headDim);
  const windows = hfSlidingWindows(fields, family, numLayers);
  const outer = new Fields(label, (key) => text[key] ?? json[key]);

  const config: ModelConfig = {
    family,
    vocabSize: fields.size("vocab_size"),
    hiddenSize,
    intermediateSize: fields.size("intermediate_size"),
    numLayers,
    numAttentionHeads,
    numKvHeads: fields.size(
      "num_key_value_heads",
      family === "llama" || family === "phi3" ? numAttentionHeads : undefined,
    ),
    headDim,
    maxPositionEmbeddings: fields.size("max_position_embeddings"),
    rmsNormEps: fields.positive("rms_norm_eps", family === "phi3" ? 1e-5 : 1e-6),
    rmsNormWeightOffset: isGemma ? 1 : 0,
    normLayout: isGemma ? "sandwich" : "pre",
    activation: readActivation(fields, isGemma),
    embeddingScale: isGemma ? Math.fround(Math.sqrt(hiddenSize)) : 1,
    tieWordEmbeddings: outer.boolean("tie_word_embeddings", isGemma),
    attentionScale: (isGemma ? fields.positive("query_pre_attn_scalar", 256) : headDim) ** -0.5,
    attentionSoftCap: readSoftCap(text, fields, "attn_logit_softcapping", family, 50),
    finalLogitSoftCap: readSoftCap(text, fields, "final_logit_softcapping", family, 30),
    hasQkNorm: family === "qwen3" || family === "gemma3",
    hasQkvBias: family === "qwen2" || hasAttentionBias,
    hasAttentionOutputBias: family !== "qwen2" && hasAttentionBias,
    hasMlpBias: family === "llama" && fields.boolean("mlp_bias", false),
    layers: windows.map((slidingWindow) => ({
      slidingWindow,
      rope: slidingWindow === null ? ropes.full : ropes.sliding,
    })),
    bosTokenId: outer.tokenIds("bos_token_id")[0] ?? null,
    eosTokenIds: endTokens(outer, generationConfig),
  };
  requireConsistent(label, config);
  return config;
}

function refuseUnsupported(fields: Fields, json: JsonObject): void {
  if (isJsonObject(json.quantization_config)) {
    const method = String(json.quantization_config.quant_method);
    throw new FormatError(
      `${fields.label}: the weights are quantised with ${method}: only GGUF's quantised types are supported`,
    );
  }
  if (fields.get("use_bidirectional_attention") === true) {
    throw fields.error("use_bidirectional_attention", true, "false (attention is causal)");
  }
}

function defaultHeadDim(family: ModelFamily, hiddenSize: number, numAttentionHeads: number): number {
  if (family === "gemma2") return 256;
  if (family === "qwen3") return 128;
  return hiddenSize / numAttentionHeads;
}

function readActivation(fields: Fields, isGemma: boolean): Activation {
  const key = isGemma ? "hidden_activation" : "hidden_act";
  const name = fields.string(key, isGemma ? "gelu_pytorch_tanh" : "silu");
  const activation = ACTIVATIONS.get(name);
  if (activation === undefined) throw fields.error(key, name, [...ACTIVATIONS.keys()].join(", "));
  return activation;
}

/** Gemma 2 has a cap unless the file says null; Gemma 3 only if the file says one; the others never. */
function readSoftCap(
  json: JsonObject,
  fields: Fields,
  key: string,
  family: ModelFamily,
  gemma2Default: number,
): number | null {
  if (family !== "gemma2" && family !== "gemma3") return null;
  if (json[key] === undefined && family === "gemma2") return gemma2Default;
  return fields.optionalPositive(key) ?? null;
}

function endTokens(fields: Fields, generationConfig: JsonObject | undefined): number[] {
  const ids = fields.tokenIds("eos_token_id");
  if (generationConfig === undefined) return ids;
  const generation = new Fields("generation_config.json", (key) => generationConfig[key]);
  return [...new Set([...ids, ...generation.tokenIds("eos_token_id")])];
}
