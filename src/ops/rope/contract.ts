/**
 * Rotary position embedding (Su et al. 2021) and the ways its frequencies are stretched for longer contexts: what a spec says, and the
 * checks on it. Frequencies and tables are in tables.ts, the rotation in reference.ts and cpu.ts.
 */
import { ArgumentError } from "../../tensor/index.ts";

/** How frequency i, theta^(-2 i / rotaryDim) unscaled, is changed, and whether cos and sin are scaled too. */
export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  /** NTK-aware: theta grows with the sequence. */
  | { readonly type: "dynamic"; readonly factor: number; readonly maxPositionEmbeddings: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    }
  /** Peng et al. 2023. */
  | {
      readonly type: "yarn";
      readonly factor: number;
      readonly originalMaxPositionEmbeddings: number;
      /** 32 by default. */
      readonly betaFast?: number;
      /** 1 by default. */
      readonly betaSlow?: number;
      readonly mscale?: number;
      readonly mscaleAllDim?: number;
      readonly attentionFactor?: number;
      /** False keeps the borders of the ramp fractional. True by default. */
      readonly truncate?: boolean;
    }
  /** Ding et al. 2024: one divisor for each frequency, the long ones once a sequence exceeds the original context. */
  | {
      readonly type: "longrope";
      readonly shortFactors: readonly number[];
      readonly longFactors: readonly number[];
      readonly originalMaxPositionEmbeddings: number;
      readonly maxPositionEmbeddings: number;
      readonly attentionFactor?: number;
    }
  /** One divisor for each frequency, as GGUF files carry them (`rope_freqs.weight`). */
  | { readonly type: "factors"; readonly factors: readonly number[] };

/** How the heads of a layer rotate with their position (RoFormer, Su et al. 2021). */
export interface RopeSpec {
  readonly headDim: number;
  /** The first channels of a head, which rotate; the others pass unchanged. Even, at most headDim. */
  readonly rotaryDim: number;
  /** Which channels make a pair: (i, i + rotaryDim / 2) or (2 i, 2 i + 1). */
  readonly style: "halves" | "interleaved";
  readonly theta: number;
  readonly scaling: RopeScaling;
}

/** Throws ArgumentError if a field is out of range, or a list of divisors has another length than rotaryDim / 2. */
export function validateRopeSpec(spec: RopeSpec): void {
  const { headDim, rotaryDim, theta, scaling } = spec;
  if (!Number.isInteger(rotaryDim) || rotaryDim < 2 || rotaryDim % 2 !== 0 || rotaryDim > headDim) {
    throw new ArgumentError(`rotaryDim must be an even integer from 2 to headDim = ${headDim}, got ${rotaryDim}`);
  }
  if (!(theta > 0 && theta < Infinity)) throw new ArgumentError(`theta must be a positive number, got ${theta}`);
  if ("factor" in scaling && !(scaling.factor > 0 && scaling.factor < Infinity)) {
    throw new ArgumentError(`scaling.factor must be a positive number, got ${scaling.factor}`);
  }
  if (scaling.type === "longrope") {
    requireLength("scaling.shortFactors", scaling.shortFactors, rotaryDim / 2);
    requireLength("scaling.longFactors", scaling.longFactors, rotaryDim / 2);
  }
  if (scaling.type === "factors") requireLength("scaling.factors", scaling.factors, rotaryDim / 2);
}

function requireLength(name: string, list: readonly number[], length: number): void {
  if (list.length !== length)
    throw new ArgumentError(`${name} must have rotaryDim / 2 = ${length} entries, got ${list.length}`);
}
