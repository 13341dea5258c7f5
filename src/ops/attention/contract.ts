/**
 * What attention means: the spec that picks a kernel, and the checks on it. How keys and values are stored is in storage.ts, the ragged
 * lengths of a step are in batch.ts, the values come from reference.ts.
 *
 * Query rows of many sequences lie one after the other; each sequence has its own keys and values, in pages or in contiguous rows. Sources:
 * ragged paged attention (JAX, arXiv 2604.15464), FlashInfer (arXiv 2501.01005), vLLM's paged attention, DeepSeek's MLA (arXiv 2405.04434),
 * Palu (arXiv 2407.21118).
 */
import { ArgumentError } from "../../tensor/index.ts";
import { type PageStorage, validateStorage } from "./storage.ts";

/**
 * The static part of an attention call. Nothing else may cause a compilation.
 *
 * The logit of query row i (at position p) and key t is `smScale * dot(q_i, k_t)`, plus the ALiBi bias, capped to `softCap * tanh(logit /
 * softCap)`, and -infinity where the key is not visible. Query head h reads key/value head floor(h / (numQHeads / numKvHeads)). Query i
 * of n is at position kvLen - n + i.
 */
export interface AttentionSpec {
  /** Channels of a query and of a key, after whatever the loader does to it: at most 1024. */
  readonly headDim: number;
  /** Channels of a value and of an output head; headDim by default. */
  readonly headDimV?: number;
  readonly numQHeads: number;
  readonly numKvHeads: number;
  /** Tokens per page. Absent: the rows of a sequence lie one after the other (see `AttentionBatch.blockTables`). */
  readonly pageSize?: number;
  readonly storage: PageStorage;
  /** Storage of the values (with `mla`: of the rope part of the keys); `storage` by default. */
  readonly valueStorage?: PageStorage;
  /**
   * Multi-head latent attention: keys are two rows side by side, `ckv` [headDimV] of the key pages and `kpe` [ropeDim] of the value pages, and
   * values are the first headDimV channels of the keys. headDim is headDimV + ropeDim, numKvHeads 1.
   */
  readonly mla?: { readonly ropeDim: number };
  /** Palu: pages hold low-rank latents of keys and values. headDimV is the largest rank of the values. */
  readonly latent?: LatentSpec;
  /** Rotate keys when they are loaded (after the up-projection of latents), from a cos/sin table: for caches of unrotated keys. */
  readonly rope?: KeyRopeSpec;
  /** Query i of n sees the keys up to position kvLen - n + i; without it, all of them. */
  readonly causal: boolean;
  /** Number of keys visible, the query's own included. Only with `causal`. */
  readonly slidingWindow?: number;
  /** A bit for each query and key of a sequence says whether it is visible (`AttentionBatch.customMask`). Only without `causal`. */
  readonly customMask?: boolean;
  /** Added to logits that causal and window hide, instead of hiding them: JAX's convention. Keys past kvLen stay hidden. */
  readonly maskValue?: number;
  readonly softCap?: number;
  readonly smScale: number;
  /** Add slope * (t - p) to the logit before the soft cap, a slope for each query head (ALiBi, Press et al. 2021). */
  readonly alibi?: boolean;
  /** A logit without key or value for each query head: it takes its share of the softmax. The LSE leaves it out. */
  readonly sinks?: boolean;
  /** Also write the logarithm of the sum of exp(logit), [rows, numQHeads]; -infinity for a row without any key. */
  readonly returnLse?: boolean;
  /** Base of the LSE: "e" by default, "2" as FlashInfer has it. */
  readonly lseBase?: "e" | "2";
  /**
   * Keys per chunk, a multiple of 32. Sums run chunk by chunk, whether one task takes all chunks of a row or each its own; the
   * result depends on this number to rounding, and on nothing else.
   */
  readonly splitSize?: number;
}

/**
 * Low-rank keys and values. Ranks differ between layers and head groups: they are not in the spec but in the head table of a call (see
 * `latentHeadTable`), at most the ones here.
 */
export interface LatentSpec {
  /** The largest rank of any group's keys. */
  readonly maxRankK: number;
  /**
   * "rebuilt": key = latent . U_k [rank, headDim] (+ bias), then rope. "absorbed": queries come multiplied with U_k^T, [rows, numQHeads,
   * maxRankK] = headDim, and meet the latents as they are; without rope or bias only. Channels of a query past the rank of its own group
   * are not read.
   */
  readonly keys: "rebuilt" | "absorbed";
  /** Add a bias [numKvHeads, headDim] to the rebuilt keys, before rope. */
  readonly bias?: boolean;
  /** The last tokens of a sequence are kept apart, as latents of this type, until they are quantised (`AttentionBatch.recent`). */
  readonly recent?: "f32" | "f16";
}

/** Which channels of a key rotate, by its absolute position. */
export interface KeyRopeSpec {
  /** Pairs (i, i + dim / 2) or (2 i, 2 i + 1), as in RopeSpec. */
  readonly style: "halves" | "interleaved";
  /** Channels that rotate: even. */
  readonly dim: number;
  /** The first of them; 0 by default. */
  readonly offset?: number;
  /** Rotate the same channels of the queries too; without it they come rotated. */
  readonly queries?: boolean;
}

/** Keys per chunk where the spec does not say. */
export const defaultSplitSize = 256;

/** Channels of a value and of an output head. */
export function valueDim({ headDim, headDimV }: Pick<AttentionSpec, "headDim" | "headDimV">): number {
  return headDimV ?? headDim;
}

const MAX_HEAD_DIM = 1024;

/** Throws ArgumentError if a field of the spec is out of range, or if two fields have no meaning together. */
export function validateAttentionSpec(spec: AttentionSpec): void {
  const { headDim, numQHeads, numKvHeads, pageSize, slidingWindow, softCap, splitSize, smScale } = spec;
  requireInteger("headDim", headDim, 1, MAX_HEAD_DIM);
  if (spec.headDimV !== undefined) requireInteger("headDimV", spec.headDimV, 1, MAX_HEAD_DIM);
  requireInteger("numKvHeads", numKvHeads, 1);
  requireInteger("numQHeads", numQHeads, 1);
  if (numQHeads % numKvHeads !== 0) {
    throw new ArgumentError(`numQHeads must be a multiple of numKvHeads = ${numKvHeads}, got ${numQHeads}`);
  }
  if (pageSize !== undefined) requireInteger("pageSize", pageSize, 1);
  validateStorage("storage", spec.storage);
  if (spec.valueStorage !== undefined) validateStorage("valueStorage", spec.valueStorage);
  if (!Number.isFinite(smScale)) throw new ArgumentError(`smScale must be a finite number, got ${smScale}`);
  if (slidingWindow !== undefined) {
    requireInteger("slidingWindow", slidingWindow, 1);
    if (!spec.causal) throw new ArgumentError(`slidingWindow = ${slidingWindow} needs causal = true`);
  }
  if (softCap !== undefined && !(softCap > 0 && softCap < Infinity)) {
    throw new ArgumentError(`softCap must be a positive number or absent, got ${softCap}`);
  }
  if (spec.customMask && spec.causal) {
    throw new ArgumentError("customMask needs causal = false: the mask alone says what is visible");
  }
  if (spec.maskValue !== undefined) validateMaskValue(spec, spec.maskValue);
  if (splitSize !== undefined) {
    requireInteger("splitSize", splitSize, 32);
    if (splitSize % 32 !== 0) throw new ArgumentError(`splitSize must be a multiple of 32, got ${splitSize}`);
  }
  if (spec.mla) validateMla(spec, spec.mla.ropeDim);
  if (spec.latent) validateLatent(spec, spec.latent);
  if (spec.rope) validateRope(spec, spec.rope);
}

function validateMaskValue(spec: AttentionSpec, maskValue: number): void {
  if (Number.isNaN(maskValue) || maskValue > 0 || maskValue === -Infinity) {
    throw new ArgumentError(`maskValue must be a finite number of at most 0, got ${maskValue}`);
  }
  if (!spec.causal)
    throw new ArgumentError(`maskValue = ${maskValue} needs causal = true: without it nothing is masked`);
}

function validateMla({ headDim, headDimV, numKvHeads, latent, rope }: AttentionSpec, ropeDim: number): void {
  requireInteger("mla.ropeDim", ropeDim, 0, MAX_HEAD_DIM);
  if (latent) throw new ArgumentError("mla and latent have no meaning together: each says what a page holds");
  if (numKvHeads !== 1) throw new ArgumentError(`numKvHeads must be 1 with mla, got ${numKvHeads}`);
  if (headDimV === undefined || headDim !== headDimV + ropeDim) {
    throw new ArgumentError(`headDim must be headDimV + mla.ropeDim = ${headDimV} + ${ropeDim}, got ${headDim}`);
  }
  if (!rope) return;
  const { offset = 0 } = rope;
  if (offset < headDimV) {
    throw new ArgumentError(
      `rope.offset must be at least headDimV = ${headDimV} with mla, got ${offset}: the channels before it are the values`,
    );
  }
}

function validateLatent({ headDim, headDimV, rope }: AttentionSpec, latent: LatentSpec): void {
  requireInteger("latent.maxRankK", latent.maxRankK, 1, MAX_HEAD_DIM);
  if (headDimV === undefined)
    throw new ArgumentError("headDimV must be given with latent: the largest rank of the values");
  if (latent.keys === "rebuilt") return;
  if (latent.bias) throw new ArgumentError("latent.bias needs latent.keys = rebuilt: a query cannot absorb it");
  if (rope) throw new ArgumentError("rope needs latent.keys = rebuilt: a rotation lies between U_k and the query");
  if (headDim !== latent.maxRankK) {
    throw new ArgumentError(`headDim must be latent.maxRankK = ${latent.maxRankK} with absorbed keys, got ${headDim}`);
  }
}

function validateRope({ headDim }: AttentionSpec, { dim, offset = 0 }: KeyRopeSpec): void {
  requireInteger("rope.dim", dim, 2, MAX_HEAD_DIM);
  requireInteger("rope.offset", offset, 0, MAX_HEAD_DIM);
  if (dim % 2 !== 0) throw new ArgumentError(`rope.dim must be even, got ${dim}`);
  if (offset + dim > headDim) {
    throw new ArgumentError(`rope.offset + rope.dim must be at most headDim = ${headDim}, got ${offset} + ${dim}`);
  }
}

/** Throws ArgumentError unless `value` is an integer in the range. */
export function requireInteger(name: string, value: number, low: number, high = Infinity): void {
  if (Number.isInteger(value) && value >= low && value <= high) return;
  const range = high === Infinity ? `of at least ${low}` : `from ${low} to ${high}`;
  throw new ArgumentError(`${name} must be an integer ${range}, got ${value}`);
}
