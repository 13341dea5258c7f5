/**
 * What ragged paged attention means: the spec that picks a kernel, the shape of a batch, and the checks on both.
 * The values come from reference.ts; the work list from plan.ts.
 *
 * Query rows of many sequences lie one after the other; the keys and values of each sequence lie in pages listed by its row of the
 * block table. Sources: ragged paged attention (JAX, arXiv 2604.15464), FlashInfer (arXiv 2501.01005), vLLM's paged attention.
 */
import { ArgumentError } from "../../tensor/index.ts";

/** Element type of the key and value pages. */
export type PageStorage = "f32" | "f16" | "bf16" | "f8e4m3" | "f8e5m2";

/**
 * The static part of an attention call. Nothing else may cause a compilation.
 *
 * The logit of query row i (at position p) and key t is `smScale * dot(q_i, k_t)`, capped to `softCap * tanh(logit / softCap)`, and
 * -infinity where the key is not visible. Query head h reads key/value head floor(h / (numQHeads / numKvHeads)).
 */
export interface AttentionSpec {
  /** Channels per head: a multiple of 4, at most 256. */
  readonly headDim: number;
  readonly numQHeads: number;
  readonly numKvHeads: number;
  /** Tokens per page. */
  readonly pageSize: number;
  readonly storage: PageStorage;
  /** Query i of n sees the keys up to position kvLen - n + i; without it, all of them. */
  readonly causal: boolean;
  /** Number of keys visible, the query's own included. Only with `causal`. */
  readonly slidingWindow?: number;
  readonly softCap?: number;
  readonly smScale: number;
  /** Add slope * (t - p) to the logit before the soft cap, a slope for each query head (ALiBi, Press et al. 2021). */
  readonly alibi?: boolean;
  /** Also write the natural logarithm of the sum of exp(logit), [rows, numQHeads]; -infinity for a row without any key. */
  readonly returnLse?: boolean;
  /**
   * Keys per chunk, a multiple of 32. Sums run chunk by chunk, whether one task takes all chunks of a row or each its own; the
   * result depends on this number to rounding, and on nothing else.
   */
  readonly splitSize?: number;
}

/** Keys per chunk where the spec does not say. */
export const defaultSplitSize = 256;

/** Distances in elements between pages, between the slots of a page, and between key/value heads. */
export interface PageStrides {
  readonly page: number;
  readonly slot: number;
  readonly head: number;
}

type PageShape = Pick<AttentionSpec, "pageSize" | "numKvHeads" | "headDim">;

/** Pages [page][slot][kv head][channel], keys and values apart: the layout of Kvasir's own cache. */
export function nhdStrides({ pageSize, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: pageSize * numKvHeads * headDim, slot: numKvHeads * headDim, head: headDim };
}

/** Pages [page][kv head][slot][channel]. */
export function hndStrides({ pageSize, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: pageSize * numKvHeads * headDim, slot: headDim, head: pageSize * headDim };
}

/** Pages [page][slot][2 * kv head][channel], keys at even and values at odd heads: the values start `headDim` elements later. */
export function combinedStrides({ pageSize, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: 2 * pageSize * numKvHeads * headDim, slot: 2 * numKvHeads * headDim, head: 2 * headDim };
}

/**
 * The ragged lengths of one step. Sequence s owns the query rows queryIndptr[s] up to queryIndptr[s + 1], the last ones of its kvLens[s]
 * tokens, whose keys and values are already in the pages. Entries past numSeqs, and page ids past the last page of a sequence, may be
 * anything: they are never read.
 */
export interface AttentionBatch {
  /** Rows of q and out. Rows past queryIndptr[numSeqs] become zeros, with lse -infinity. */
  readonly numRows: number;
  readonly numSeqs: number;
  readonly queryIndptr: Int32Array;
  readonly kvLens: Int32Array;
  /** [sequences, maxPages] */
  readonly blockTables: Int32Array;
  readonly maxPages: number;
  /** Pages in the pool. */
  readonly numPages: number;
  /** Let a sequence have more queries than keys: the first ones see nothing and become zeros. Refused by default. */
  readonly allowUnseeing?: boolean;
}

/** Throws ArgumentError if a field of the spec is out of range. */
export function validateAttentionSpec(spec: AttentionSpec): void {
  const { headDim, numQHeads, numKvHeads, pageSize, slidingWindow, softCap, splitSize, smScale } = spec;
  requireInteger("headDim", headDim, 1, 256);
  if (headDim % 4 !== 0) throw new ArgumentError(`headDim must be a multiple of 4, got ${headDim}`);
  requireInteger("numKvHeads", numKvHeads, 1);
  requireInteger("numQHeads", numQHeads, 1);
  if (numQHeads % numKvHeads !== 0) {
    throw new ArgumentError(`numQHeads must be a multiple of numKvHeads = ${numKvHeads}, got ${numQHeads}`);
  }
  requireInteger("pageSize", pageSize, 1);
  if (!Number.isFinite(smScale)) throw new ArgumentError(`smScale must be a finite number, got ${smScale}`);
  if (slidingWindow !== undefined) {
    requireInteger("slidingWindow", slidingWindow, 1);
    if (!spec.causal) throw new ArgumentError(`slidingWindow = ${slidingWindow} needs causal = true`);
  }
  if (softCap !== undefined && !(softCap > 0 && softCap < Infinity)) {
    throw new ArgumentError(`softCap must be a positive number or absent, got ${softCap}`);
  }
  if (splitSize !== undefined) {
    requireInteger("splitSize", splitSize, 32);
    if (splitSize % 32 !== 0) throw new ArgumentError(`splitSize must be a multiple of 32, got ${splitSize}`);
  }
}

/** Throws ArgumentError if the lengths or page ids of the batch do not fit together. Reads only what belongs to the numSeqs sequences. */
export function validateAttentionBatch({ pageSize }: Pick<AttentionSpec, "pageSize">, batch: AttentionBatch): void {
  const { numRows, numSeqs, queryIndptr, kvLens, blockTables, maxPages, numPages } = batch;
  requireInteger("numRows", numRows, 0);
  requireInteger("numSeqs", numSeqs, 0);
  if (queryIndptr.length < numSeqs + 1) {
    throw new ArgumentError(
      `queryIndptr must have at least numSeqs + 1 = ${numSeqs + 1} entries, got ${queryIndptr.length}`,
    );
  }
  if (kvLens.length < numSeqs)
    throw new ArgumentError(`kvLens must have at least numSeqs = ${numSeqs} entries, got ${kvLens.length}`);
  if (blockTables.length < numSeqs * maxPages) {
    throw new ArgumentError(
      `blockTables must have at least [${numSeqs}, ${maxPages}] entries, got ${blockTables.length}`,
    );
  }
  if (queryIndptr[0] !== 0) throw new ArgumentError(`queryIndptr[0] must be 0, got ${queryIndptr[0]}`);
  for (let s = 0; s < numSeqs; s++) {
    const queryLen = queryIndptr[s + 1] - queryIndptr[s];
    const kvLen = kvLens[s];
    if (queryLen < 0) {
      throw new ArgumentError(
        `queryIndptr must not fall, got ${queryIndptr[s]} then ${queryIndptr[s + 1]} for sequence ${s}`,
      );
    }
    if (kvLen < 0) throw new ArgumentError(`kvLens[${s}] must not be negative, got ${kvLen}`);
    if (queryLen > kvLen && !batch.allowUnseeing) {
      throw new ArgumentError(
        `sequence ${s} has ${queryLen} queries but kvLens[${s}] = ${kvLen}: kvLens counts the query tokens`,
      );
    }
    const pagesNeeded = Math.ceil(kvLen / pageSize);
    if (pagesNeeded > maxPages) {
      throw new ArgumentError(
        `kvLens[${s}] = ${kvLen} needs ${pagesNeeded} pages of ${pageSize} tokens, but blockTables has ${maxPages} a sequence`,
      );
    }
    for (let j = 0; j < pagesNeeded; j++) {
      const page = blockTables[s * maxPages + j];
      if (page < 0 || page >= numPages) {
        throw new ArgumentError(`blockTables[${s}][${j}] = ${page} is not a page: the pool has ${numPages}`);
      }
    }
  }
  if (queryIndptr[numSeqs] > numRows) {
    throw new ArgumentError(`queryIndptr[numSeqs] = ${queryIndptr[numSeqs]} must not exceed numRows = ${numRows}`);
  }
}

function requireInteger(name: string, value: number, low: number, high = Infinity): void {
  if (Number.isInteger(value) && value >= low && value <= high) return;
  const range = high === Infinity ? `of at least ${low}` : `from ${low} to ${high}`;
  throw new ArgumentError(`${name} must be an integer ${range}, got ${value}`);
}
