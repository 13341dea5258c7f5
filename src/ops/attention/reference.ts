/**
 * The definition of ragged paged attention: plain loops in float64. Slow and meant to be read; every kernel is tested against it.
 */
import { type AttentionBatch, validateAttentionBatch } from "./batch.ts";
import type { AttentionSpec } from "./contract.ts";
import type { PageStrides } from "./storage.ts";

/** Inputs as plain numbers; pages of any storage type are decoded by the caller. */
export interface AttentionInputs {
  /** [numRows, numQHeads, headDim] */
  readonly q: ArrayLike<number>;
  readonly kPages: ArrayLike<number>;
  readonly vPages: ArrayLike<number>;
  readonly kStrides: PageStrides;
  readonly vStrides: PageStrides;
  /** Element of vPages where its first page begins: headDim where keys and values share one array, else 0. */
  readonly vOffset?: number;
  /** [numQHeads]: ALiBi if given. */
  readonly alibiSlopes?: ArrayLike<number>;
  /** Factor on the logits, for keys stored divided by it. */
  readonly kScale?: number;
  /** Factor on the output, for values stored divided by it. */
  readonly vScale?: number;
}

/** The results of every row, rows past the batch included. */
export interface AttentionOutputs {
  /** [numRows, numQHeads, headDim] */
  readonly out: Float64Array;
  /** [numRows, numQHeads], natural logarithm */
  readonly lse: Float64Array;
}

/** What of a spec has a meaning; the rest says how it is stored, split or returned. */
export type ReferenceSpec = Omit<AttentionSpec, "storage" | "splitSize" | "returnLse" | "alibi">;

/** Attention of every row of the batch. Throws ArgumentError for lengths or page ids that do not fit together. */
export function attentionReference(
  spec: ReferenceSpec,
  batch: AttentionBatch,
  inputs: AttentionInputs,
): AttentionOutputs {
  validateAttentionBatch(spec, batch);
  const out = new Float64Array(batch.numRows * spec.numQHeads * spec.headDim);
  const lse = new Float64Array(batch.numRows * spec.numQHeads).fill(-Infinity);
  for (let s = 0; s < batch.numSeqs; s++) {
    const firstRow = batch.queryIndptr[s];
    const queryLen = batch.queryIndptr[s + 1] - firstRow;
    for (let i = 0; i < queryLen; i++) {
      const position = batch.kvLens[s] - queryLen + i;
      for (let head = 0; head < spec.numQHeads; head++) {
        const at = (firstRow + i) * spec.numQHeads + head;
        lse[at] = attendRow(spec, batch, inputs, s, position, head, at, out);
      }
    }
  }
  return { out, lse };
}

/** One query head of one token: writes its channels of `out` and returns the lse. */
function attendRow(
  spec: ReferenceSpec,
  batch: AttentionBatch,
  inputs: AttentionInputs,
  sequence: number,
  position: number,
  head: number,
  at: number,
  out: Float64Array,
): number {
  const { headDim, pageSize = 2 ** 30, softCap } = spec;
  const { q, kPages, vPages, kStrides, vStrides, vOffset = 0, kScale = 1, vScale = 1 } = inputs;
  const kvHead = Math.floor(head / (spec.numQHeads / spec.numKvHeads));
  const kvLen = batch.kvLens[sequence];
  const end = spec.causal ? Math.min(kvLen, position + 1) : kvLen;
  const begin = spec.slidingWindow === undefined ? 0 : Math.max(0, position - spec.slidingWindow + 1);
  if (end <= begin) return -Infinity;

  const elementOf = (strides: PageStrides, t: number): number => {
    const page = batch.blockTables[sequence * batch.maxPages + Math.floor(t / pageSize)];
    return page * strides.page + (t % pageSize) * strides.slot + kvHead * strides.head;
  };
  const logits = new Float64Array(end - begin);
  for (let t = begin; t < end; t++) {
    const key = elementOf(kStrides, t);
    let dot = 0;
    for (let d = 0; d < headDim; d++) dot += q[at * headDim + d] * kPages[key + d];
    let logit = dot * spec.smScale * kScale;
    if (inputs.alibiSlopes) logit += inputs.alibiSlopes[head] * (t - position);
    if (softCap !== undefined) logit = softCap * Math.tanh(logit / softCap);
    logits[t - begin] = logit;
  }
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (max === -Infinity) return -Infinity;
  const weights = logits.map((logit) => Math.exp(logit - max));
  const sum = weights.reduce((a, b) => a + b, 0);
  for (let t = begin; t < end; t++) {
    const value = vOffset + elementOf(vStrides, t);
    const weight = (weights[t - begin] / sum) * vScale;
    for (let d = 0; d < headDim; d++) out[at * headDim + d] += weight * vPages[value + d];
  }
  return max + Math.log(sum);
}
