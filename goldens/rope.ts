/** Golden cases of the rotary embedding: frequencies, tables and rotated values. */
import type { RopeScaling, RopeSpec } from "../src/ops/rope/contract.ts";
import { ropeReference } from "../src/ops/rope/reference.ts";
import { attentionFactor, inverseFrequencies } from "../src/ops/rope/tables.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { ropeOnCpu } from "./ropeOnCpu.ts";

export async function runRope(golden: GoldenCase, target: GoldenTarget): Promise<Record<string, ArrayLike<number>>> {
  const spec = readSpec(golden);
  const seqLen = golden.number("seq_len");
  const positions = golden.integers("positions");
  const numHeads = golden.requiredNumber("num_heads");
  const frequencies = inverseFrequencies(spec, seqLen);
  const factor = attentionFactor(spec);
  if (Math.abs(factor - golden.requiredNumber("attention_factor")) > 1e-12) {
    throw new Error(`attention factor is ${factor}, expected ${golden.requiredNumber("attention_factor")}`);
  }
  const table = (f: (angle: number) => number) =>
    Array.from(positions, (position) =>
      Array.from(frequencies, (frequency) => f(position * frequency) * factor),
    ).flat();
  const shared = { inv_freq: frequencies, inv_freq_float32: frequencies };
  if (target.name === "cpu") return { ...shared, ...(await ropeOnCpu(spec, golden, target.device, seqLen)) };
  const y = ropeReference(spec, golden.input("x"), positions, numHeads, seqLen);
  return { ...shared, cos: table(Math.cos), sin: table(Math.sin), y };
}

function readSpec(golden: GoldenCase): RopeSpec {
  const { style } = golden.file.params;
  if (style !== "neox" && style !== "interleaved") throw new Error(`params.style ${JSON.stringify(style)} is unknown`);
  return {
    headDim: golden.requiredNumber("head_dim"),
    rotaryDim: golden.requiredNumber("rotary_dim"),
    style: style === "neox" ? "halves" : "interleaved",
    ...readFrequencies(golden),
  };
}

/** Base and scaling of a case's `params.rope`. */
export function readFrequencies(golden: GoldenCase): Pick<RopeSpec, "theta" | "scaling"> {
  const { rope } = golden.file.params;
  if (typeof rope !== "object" || rope === null) throw new Error("params.rope is missing");
  const read = (name: string): unknown => (rope as Record<string, unknown>)[name];
  const theta = read("rope_theta");
  if (typeof theta !== "number") throw new Error("params.rope.rope_theta is missing");
  return { theta, scaling: readScaling(read, golden.requiredNumber("max_position_embeddings")) };
}

function readScaling(read: (name: string) => unknown, maxPositionEmbeddings: number): RopeScaling {
  const optional = (name: string): number | undefined => {
    const value = read(name);
    return typeof value === "number" ? value : undefined;
  };
  const required = (name: string): number => {
    const value = optional(name);
    if (value === undefined) throw new Error(`params.rope.${name} is missing`);
    return value;
  };
  const list = (name: string): number[] => {
    const value = read(name);
    if (!Array.isArray(value)) throw new Error(`params.rope.${name} is missing`);
    return value.map(Number);
  };
  const type = read("rope_type");
  switch (type) {
    case "default":
      return { type };
    case "linear":
      return { type, factor: required("factor") };
    case "dynamic":
      return { type, factor: required("factor"), maxPositionEmbeddings };
    case "llama3":
      return {
        type,
        factor: required("factor"),
        lowFreqFactor: required("low_freq_factor"),
        highFreqFactor: required("high_freq_factor"),
        originalMaxPositionEmbeddings: required("original_max_position_embeddings"),
      };
    case "yarn":
      return {
        type,
        factor: required("factor"),
        originalMaxPositionEmbeddings: required("original_max_position_embeddings"),
        betaFast: optional("beta_fast"),
        betaSlow: optional("beta_slow"),
        mscale: optional("mscale"),
        mscaleAllDim: optional("mscale_all_dim"),
        attentionFactor: optional("attention_factor"),
      };
    case "longrope":
      return {
        type,
        shortFactors: list("short_factor"),
        longFactors: list("long_factor"),
        originalMaxPositionEmbeddings: required("original_max_position_embeddings"),
        maxPositionEmbeddings,
        attentionFactor: optional("attention_factor"),
      };
    default:
      throw new Error(`params.rope.rope_type ${JSON.stringify(type)} is unknown`);
  }
}
