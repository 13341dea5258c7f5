/**
 * RoPE settings of a config.json in both spellings: `rope_parameters` (transformers 5, one set or one for each kind of layer), or `rope_theta`
 * with `rope_scaling` (before). What the scalings do is src/ops/rope's.
 */

import type { RopeScaling, RopeSpec } from "../../ops/rope/contract.ts";
import { isJsonObject, type JsonObject } from "../formats/index.ts";
import { Fields } from "./fields.ts";
import type { ModelFamily } from "./modelConfig.ts";

/** RoPE of layers that see everything, and of those with a sliding window. They differ in Gemma 3 only. */
export interface LayerRopes {
  readonly full: RopeSpec;
  readonly sliding: RopeSpec;
}

/** Reads both. `config` are the fields of the (text) config. Throws FormatError for an unknown scaling or a missing parameter of it. */
export function hfRopes(config: Fields, family: ModelFamily, headDim: number): LayerRopes {
  const defaultTheta = family === "gemma3" ? 1_000_000 : 10_000;
  const parameters = config.get("rope_parameters");
  if (isJsonObject(parameters)) {
    const { full_attention: full, sliding_attention: sliding } = parameters;
    if (isJsonObject(full) && isJsonObject(sliding)) {
      return {
        full: readRope(config, full, "rope_parameters.full_attention", headDim, defaultTheta),
        sliding: readRope(config, sliding, "rope_parameters.sliding_attention", headDim, 10_000),
      };
    }
    const rope = readRope(config, parameters, "rope_parameters", headDim, defaultTheta);
    return { full: rope, sliding: family === "gemma3" ? localRope(config, rope) : rope };
  }
  if (parameters !== undefined) throw config.error("rope_parameters", parameters, "an object");
  const scaling = config.get("rope_scaling") ?? {};
  if (!isJsonObject(scaling)) throw config.error("rope_scaling", scaling, "an object or null");
  const rope = readRope(config, scaling, "rope_scaling", headDim, defaultTheta);
  return { full: rope, sliding: family === "gemma3" ? localRope(config, rope) : rope };
}

/** Gemma 3's sliding layers have a base of their own and are not scaled. */
function localRope(config: Fields, rope: RopeSpec): RopeSpec {
  return { ...rope, theta: config.positive("rope_local_base_freq", 10_000), scaling: { type: "default" } };
}

function readRope(config: Fields, json: JsonObject, path: string, headDim: number, defaultTheta: number): RopeSpec {
  const rope = new Fields(config.label, (key) => json[key.slice(path.length + 1)], `${path}.`);
  const partial = rope.optionalPositive("partial_rotary_factor") ?? config.positive("partial_rotary_factor", 1);
  const rotaryDim = Math.floor(headDim * partial);
  if (partial > 1 || rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw config.error(
      "partial_rotary_factor",
      partial,
      `a factor that makes an even part of the head's ${headDim} channels`,
    );
  }
  return {
    headDim,
    rotaryDim,
    style: "halves",
    theta: rope.optionalPositive("rope_theta") ?? config.positive("rope_theta", defaultTheta),
    scaling: readScaling(config, rope, rotaryDim),
  };
}

function readScaling(config: Fields, rope: Fields, rotaryDim: number): RopeScaling {
  const type = rope.string("rope_type", rope.string("type", "default"));
  const maxPositionEmbeddings = () => config.size("max_position_embeddings");
  const originalMaxPositionEmbeddings = () =>
    rope.size(
      "original_max_position_embeddings",
      config.size("original_max_position_embeddings", maxPositionEmbeddings()),
    );
  switch (type) {
    case "default":
      return { type };
    case "linear":
      return { type, factor: rope.positive("factor") };
    case "dynamic":
      return { type, factor: rope.positive("factor"), maxPositionEmbeddings: maxPositionEmbeddings() };
    case "llama3":
      return {
        type,
        factor: rope.positive("factor"),
        lowFreqFactor: rope.positive("low_freq_factor"),
        highFreqFactor: rope.positive("high_freq_factor"),
        originalMaxPositionEmbeddings: rope.size("original_max_position_embeddings"),
      };
    case "yarn":
      return {
        type,
        factor: rope.positive("factor"),
        originalMaxPositionEmbeddings: originalMaxPositionEmbeddings(),
        betaFast: rope.optionalPositive("beta_fast"),
        betaSlow: rope.optionalPositive("beta_slow"),
        mscale: rope.optionalPositive("mscale"),
        mscaleAllDim: rope.optionalPositive("mscale_all_dim"),
        attentionFactor: rope.optionalPositive("attention_factor"),
        truncate: rope.optionalBoolean("truncate"),
      };
    case "longrope":
    case "su": // what the first Phi 3 files call it
      return {
        type: "longrope",
        shortFactors: rope.numbers("short_factor", rotaryDim / 2),
        longFactors: rope.numbers("long_factor", rotaryDim / 2),
        originalMaxPositionEmbeddings: originalMaxPositionEmbeddings(),
        maxPositionEmbeddings: maxPositionEmbeddings(),
        attentionFactor: rope.optionalPositive("attention_factor"),
      };
    default:
      throw rope.error("rope_type", type, "default, linear, dynamic, llama3, yarn or longrope");
  }
}
