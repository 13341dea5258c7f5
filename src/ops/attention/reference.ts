/**
 * The definition of attention: plain loops in float64. Slow and meant to be read; every kernel is tested against it. Where keys and values
 * come from (pages, latents) is in referenceTokens.ts.
 */
import { ArgumentError } from "../../tensor/index.ts";
import { type AttentionBatch, validateAttentionBatch } from "./batch.ts";
import { type AttentionSpec, validateAttentionSpec, valueDim } from "./contract.ts";
import { latentLayout } from "./latent.ts";
import { type AttentionInputs, cachedTokens, rotate } from "./referenceTokens.ts";

/** The results of every row, rows past the batch included. */
export interface AttentionOutputs {
  /** [numRows, numQHeads, headDimV]; with latents [numRows, LatentLayout.outRow] */
  readonly out: Float64Array;
  /** [numRows, numQHeads], in the spec's base */
  readonly lse: Float64Array;
}

/**
 * What of a spec has a meaning; the rest says how it is stored, split or returned. ALiBi and sinks are there if the inputs have their
 * numbers.
 */
export type ReferenceSpec = Omit<
  AttentionSpec,
  "storage" | "valueStorage" | "splitSize" | "returnLse" | "alibi" | "sinks"
>;

/** Attention of every row of the batch. Throws ArgumentError for a spec, lengths or page ids that do not fit together. */
export function attentionReference(
  spec: ReferenceSpec,
  batch: AttentionBatch,
  inputs: AttentionInputs,
): AttentionOutputs {
  validateAttentionSpec({ ...spec, storage: "f32" });
  validateAttentionBatch(spec, batch);
  const { numQHeads, numKvHeads, headDim } = spec;
  const group = numQHeads / numKvHeads;
  const tokens = cachedTokens(spec, batch, inputs);
  const places = outputPlaces(spec, inputs);
  const out = new Float64Array(batch.numRows * places.rowLength);
  const lse = new Float64Array(batch.numRows * numQHeads).fill(-Infinity);

  for (let s = 0; s < batch.numSeqs; s++) {
    const firstRow = batch.queryIndptr[s];
    const queryLen = batch.queryIndptr[s + 1] - firstRow;
    for (let kvHead = 0; kvHead < numKvHeads; kvHead++) {
      const keys = onDemand((t) => tokens.key(s, t, kvHead));
      const values = onDemand((t) => tokens.value(s, t, kvHead));
      for (let i = 0; i < queryLen; i++) {
        for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
          const at = (firstRow + i) * numQHeads + head;
          const query = Float64Array.from({ length: headDim }, (_, d) => inputs.q[at * headDim + d]);
          const begin = (firstRow + i) * places.rowLength + places.offsets[head];
          lse[at] = attend(spec, batch, inputs, { s, i, head, query, keys, values, out: out.subarray(begin) });
        }
      }
    }
  }
  return { out, lse };
}

/** Query i of sequence s under one head. */
interface QueryRow {
  readonly s: number;
  readonly i: number;
  readonly head: number;
  readonly query: Float64Array;
  readonly keys: (t: number) => Float64Array;
  readonly values: (t: number) => Float64Array;
  /** Zeros, from where the head's outputs begin. */
  readonly out: Float64Array;
}

/** Adds the weighted values to `out` and returns the lse. */
function attend(
  spec: ReferenceSpec,
  batch: AttentionBatch,
  inputs: AttentionInputs,
  { s, i, head, query, keys, values, out }: QueryRow,
): number {
  const kvLen = batch.kvLens[s];
  const position = kvLen - (batch.queryIndptr[s + 1] - batch.queryIndptr[s]) + i;
  const rotated = spec.rope?.queries
    ? rotate(spec.rope, inputs, query, (batch.positionOffsets?.[s] ?? 0) + position)
    : query;
  const visible: number[] = [];
  const logits: number[] = [];
  for (let t = 0; t < kvLen; t++) {
    const mask = spec.customMask ? customMask(batch, s, i, t) : positionMask(spec, position, t);
    if (mask === -Infinity) continue;
    visible.push(t);
    logits.push(logitOf(spec, inputs, rotated, keys(t), head, t - position) + mask);
  }
  const { weights, logSum } = softmax(logits, inputs.sinks?.[head]);
  for (const [j, t] of visible.entries()) {
    const weight = weights[j] * (inputs.vScale ?? 1);
    const value = values(t);
    for (let d = 0; d < value.length; d++) out[d] += weight * value[d];
  }
  return spec.lseBase === "2" ? logSum / Math.LN2 : logSum;
}

/** What is added to the logit of a query and a key: 0 if the key is visible, else -infinity or the spec's mask value. */
function positionMask(
  { causal, slidingWindow = Infinity, maskValue }: ReferenceSpec,
  position: number,
  t: number,
): number {
  const isVisible = !causal || (t <= position && t > position - slidingWindow);
  return isVisible ? 0 : (maskValue ?? -Infinity);
}

function customMask({ customMask, kvLens }: AttentionBatch, s: number, i: number, t: number): number {
  if (!customMask) return -Infinity; // refused by validateAttentionBatch
  const bit = i * kvLens[s] + t;
  return (customMask.bits[customMask.indptr[s] + (bit >> 3)] >> (bit & 7)) & 1 ? 0 : -Infinity;
}

/** `distance`: position of the key minus that of the query. */
function logitOf(
  spec: ReferenceSpec,
  inputs: AttentionInputs,
  query: Float64Array,
  key: Float64Array,
  head: number,
  distance: number,
): number {
  const { smScale, softCap } = spec;
  let dot = 0;
  // An absorbed query has the largest rank of any group: the channels past its group's own rank mean nothing.
  for (let d = 0; d < key.length; d++) dot += query[d] * key[d];
  let logit = dot * smScale * (inputs.kScale ?? 1);
  if (inputs.alibiSlopes) logit += inputs.alibiSlopes[head] * distance;
  if (softCap !== undefined) logit = softCap * Math.tanh(logit / softCap);
  return logit;
}

/** exp(logit) over the sum of all of them, the sink's included; and the logarithm of the sum without the sink. */
function softmax(logits: readonly number[], sink = -Infinity): { weights: readonly number[]; logSum: number } {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  if (max === -Infinity) return { weights: logits.map(() => 0), logSum: -Infinity };
  const scale = Math.max(max, sink);
  const exponentials = logits.map((logit) => Math.exp(logit - scale));
  const sum = exponentials.reduce((a, b) => a + b, 0) + Math.exp(sink - scale);
  const ownSum = logits.reduce((a, logit) => a + Math.exp(logit - max), 0);
  return { weights: exponentials.map((value) => value / sum), logSum: max + Math.log(ownSum) };
}

/** Where each query head's outputs begin in a row. */
function outputPlaces(
  spec: ReferenceSpec,
  { latent }: AttentionInputs,
): { readonly rowLength: number; readonly offsets: ArrayLike<number> } {
  if (spec.latent) {
    if (!latent) throw new ArgumentError("latent must be given because the spec has latent");
    const { outRow, outOffsets } = latentLayout(latent, { ...spec, storage: "f32" });
    return { rowLength: outRow, offsets: outOffsets };
  }
  const dim = valueDim(spec);
  return {
    rowLength: spec.numQHeads * dim,
    offsets: Array.from({ length: spec.numQHeads }, (_, head) => head * dim),
  };
}

/** Each token's row once, at its first use: what is never seen is never read. */
function onDemand(row: (t: number) => Float64Array): (t: number) => Float64Array {
  const rows: Float64Array[] = [];
  return (t) => {
    rows[t] ??= row(t);
    return rows[t];
  };
}
