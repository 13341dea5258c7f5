/**
 * RoPE settings of a GGUF file: metadata keys, and tensors with one divisor for each frequency. What the scalings do is src/ops/rope's.
 */

import type { RopeScaling, RopeSpec } from "../../ops/rope/contract.ts";
import { dequantize, FormatError } from "../../tensor/index.ts";
import { readTensor, type WeightsFile } from "../formats/index.ts";
import type { Fields } from "./fields.ts";
import type { LayerRopes } from "./hfRope.ts";
import type { ModelFamily } from "./modelConfig.ts";

/** RoPE of full and of sliding layers. Throws FormatError for an unknown scaling or divisors of the wrong number. */
export async function ggufRopes(
  file: WeightsFile,
  fields: Fields,
  family: ModelFamily,
  headDim: number,
): Promise<LayerRopes> {
  const rotaryDim = fields.size("rope.dimension_count", headDim);
  if (rotaryDim % 2 !== 0 || rotaryDim > headDim) {
    throw fields.error("rope.dimension_count", rotaryDim, `an even number up to the head's ${headDim} channels`);
  }
  const full: RopeSpec = {
    headDim,
    rotaryDim,
    // The converter reorders the rows of q and k of llama files so that rotated pairs are neighbours.
    style: family === "llama" ? "interleaved" : "halves",
    theta: fields.positive("rope.freq_base", 10_000),
    scaling: await readScaling(file, fields, rotaryDim),
  };
  if (family !== "gemma3") return { full, sliding: full };
  return {
    full,
    sliding: { ...full, theta: fields.positive("rope.freq_base_swa", 10_000), scaling: { type: "default" } },
  };
}

async function readScaling(file: WeightsFile, fields: Fields, rotaryDim: number): Promise<RopeScaling> {
  const type = fields.string("rope.scaling.type", fields.get("rope.scale_linear") === undefined ? "none" : "linear");
  const freqs = await readDivisors(file, "rope_freqs.weight", rotaryDim);
  const short = await readDivisors(file, "rope_factors_short.weight", rotaryDim);
  const long = await readDivisors(file, "rope_factors_long.weight", rotaryDim);
  if (short !== undefined && long !== undefined) {
    return {
      type: "longrope",
      shortFactors: short,
      longFactors: long,
      originalMaxPositionEmbeddings: fields.size("rope.scaling.original_context_length"),
      maxPositionEmbeddings: fields.size("context_length"),
      attentionFactor: fields.optionalPositive("rope.scaling.attn_factor"),
    };
  }
  const factor = () => fields.positive("rope.scaling.factor", fields.positive("rope.scale_linear", 1));
  switch (type) {
    case "none":
      return freqs === undefined ? { type: "default" } : { type: "factors", factors: freqs };
    case "linear":
      if (freqs !== undefined) return { type: "factors", factors: freqs.map((divisor) => divisor * factor()) };
      return factor() === 1 ? { type: "default" } : { type, factor: factor() };
    case "yarn":
      if (freqs === undefined) return readYarn(fields, factor());
      throw new FormatError(
        `${file.label}: rope.scaling.type yarn and the tensor rope_freqs.weight do not go together`,
      );
    default:
      throw fields.error(
        "rope.scaling.type",
        type,
        "none, linear, yarn, or longrope with its two tensors rope_factors_*.weight",
      );
  }
}

function readYarn(fields: Fields, factor: number): RopeScaling {
  const attentionFactor = fields.optionalPositive("rope.scaling.attn_factor");
  return {
    type: "yarn",
    factor,
    originalMaxPositionEmbeddings: fields.size("rope.scaling.original_context_length", fields.size("context_length")),
    betaFast: fields.optionalPositive("rope.scaling.yarn_beta_fast"),
    betaSlow: fields.optionalPositive("rope.scaling.yarn_beta_slow"),
    // llama.cpp multiplies the usual factor of yarn by this one.
    attentionFactor: attentionFactor === undefined ? undefined : attentionFactor * (0.1 * Math.log(factor) + 1),
  };
}

/** The divisors in a tensor of rotaryDim / 2 numbers; undefined if the file has none. */
async function readDivisors(file: WeightsFile, name: string, rotaryDim: number): Promise<number[] | undefined> {
  const entry = file.tensors.get(name);
  if (entry === undefined) return undefined;
  if (entry.shape.length !== 1 || entry.shape[0] !== rotaryDim / 2) {
    throw new FormatError(
      `${file.label}: tensor ${name} must have shape [${rotaryDim / 2}], got [${entry.shape.join(", ")}]`,
    );
  }
  const divisors = Array.from(dequantize(entry.type, await readTensor(entry), rotaryDim / 2));
  const bad = divisors.findIndex((divisor) => !(divisor > 0 && divisor < Infinity));
  if (bad >= 0) throw new FormatError(`${file.label}: ${name}[${bad}] is ${divisors[bad]}: a positive number is right`);
  return divisors;
}
