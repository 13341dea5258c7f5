/** What FlashInfer's wrappers are given: the options of a plan and of a run, with FlashInfer's defaults, and the checks that need no lengths. */
import { slidingWindowFrom } from "../attention/index.ts";
import type { ElementStorage, PackedMask } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { requireGroups, requirePositive } from "./attendOnce.ts";

/** How positions enter: not at all; rotating keys of an unrotated cache and queries, channel i with i + headDim / 2; as a bias (ALiBi). */
export type PosEncodingMode = "NONE" | "ROPE_LLAMA" | "ALIBI";

/** Options of every plan. */
export interface FlashInferPlanOptions {
  /** "NONE" by default. */
  readonly posEncodingMode?: PosEncodingMode;
  /** Keys that a query sees before its own position; -1, the default, is all of them. */
  readonly windowLeft?: number;
  /** logit = cap * tanh(logit / cap); 0, the default, is off. */
  readonly logitsSoftCap?: number;
  /** headDimQk^-0.5 by default. */
  readonly smScale?: number;
  /** Positions are divided by it before they rotate; 1 by default. */
  readonly ropeScale?: number;
  /** 10000 by default. */
  readonly ropeTheta?: number;
  /** Type of keys and values; "f32" by default. Queries and results are f32. */
  readonly kvDataType?: ElementStorage;
  /** False leaves page ids unread, for callers who know them to be right. */
  readonly checkPages?: boolean;
}

/** Options of every run. */
export interface FlashInferRunOptions {
  /** Factors on the logits (the first two) and on the result. */
  readonly qScale?: number;
  readonly kScale?: number;
  readonly vScale?: number;
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  /** Also return the LSE, to base 2, [rows, numQoHeads]; false by default. */
  readonly returnLse?: boolean;
  readonly lse?: DeviceTensor;
  /** [numQoHeads] f32: a logit without key and value for each query head. The LSE leaves it out. */
  readonly sinks?: DeviceTensor;
}

/** What a wrapper's plan comes to. */
export interface PlannedHeads {
  readonly numQoHeads: number;
  readonly numKvHeads: number;
  readonly headDimQk: number;
  readonly headDimVo?: number;
  /** Absent for contiguous rows. */
  readonly pageSize?: number;
  readonly causal: boolean;
  /** Wins over `causal`. */
  readonly customMask?: PackedMask;
}

/** Throws ArgumentError for heads and options of a plan that mean nothing. */
export function checkPlanOptions(heads: PlannedHeads, options: FlashInferPlanOptions): void {
  const { posEncodingMode = "NONE", windowLeft = -1, logitsSoftCap = 0, ropeScale, ropeTheta, smScale } = options;
  requireGroups(heads.numQoHeads, heads.numKvHeads);
  requirePositive({ ropeScale, ropeTheta, smScale });
  if (!(logitsSoftCap >= 0)) {
    throw new ArgumentError(`logitsSoftCap = ${logitsSoftCap} must be positive, or 0 for none`);
  }
  slidingWindowFrom({ windowLeft });
  if (posEncodingMode !== "NONE" && posEncodingMode !== "ROPE_LLAMA" && posEncodingMode !== "ALIBI") {
    throw new ArgumentError(`posEncodingMode = ${posEncodingMode} must be NONE, ROPE_LLAMA or ALIBI`);
  }
}
