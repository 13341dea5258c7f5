/**
 * The definition of attention over Palu's latents: plain loops in float64. Keys are rebuilt in full, once for each key/value head; values
 * stay latents. Source: Chang et al. 2024 (arXiv 2407.21118).
 */
import {
  type AttentionBatch,
  type KeyRopeSpec,
  type LatentRanks,
  tableOffset,
  validateAttentionBatch,
} from "../../ops/attention/index.ts";
import type { PaluHeads } from "./projections.ts";

/** What of a spec has a meaning; the rest says how it is stored, split or returned. */
export interface PaluReferenceSpec extends PaluHeads, LatentRanks {
  readonly smScale: number;
  readonly causal: boolean;
  /** Number of keys visible, the query's own included. */
  readonly slidingWindow?: number;
  readonly softCap?: number;
  readonly rope?: KeyRopeSpec;
}

/** The latents of a token of a sequence, decoded: those of all groups one after the other. */
export type LatentRows = (sequence: number, token: number) => ArrayLike<number>;

/** Inputs as plain numbers. */
export interface PaluReferenceInputs {
  /** [numRows, numQHeads, headDim], rotated already unless the spec's rope says otherwise */
  readonly q: ArrayLike<number>;
  readonly keyLatents: LatentRows;
  readonly valueLatents: LatentRows;
  /** For each key/value head in order [rank of its group, headDim]. */
  readonly upK: ArrayLike<number>;
  /** [numKvHeads, headDim] */
  readonly keyBias?: ArrayLike<number>;
  /** Radians per position [rope.dim / 2]: `inverseFrequencies`. */
  readonly ropeFrequencies?: ArrayLike<number>;
  /** [numQHeads]: ALiBi if given. */
  readonly alibiSlopes?: ArrayLike<number>;
}

export interface PaluReferenceOutputs {
  /** [numRows, for each query head in order the rank of its group's values] */
  readonly out: Float64Array;
  /** [numRows, numQHeads], natural logarithm */
  readonly lse: Float64Array;
}

/** Rows of pages [page][slot][row] found through the block tables of a batch. */
export function pagedLatents(
  batch: AttentionBatch,
  pageSize: number,
  pages: { readonly values: ArrayLike<number>; readonly rowLength: number },
): LatentRows {
  return (sequence, token) => {
    const page = batch.blockTables[tableOffset(batch, sequence) + Math.floor(token / pageSize)];
    const at = (page * pageSize + (token % pageSize)) * pages.rowLength;
    return Array.from({ length: pages.rowLength }, (_, i) => pages.values[at + i]);
  };
}

/** Attention of every row of the batch; page ids are the business of the two `LatentRows`. Throws ArgumentError for lengths that do not fit. */
export function paluAttentionReference(
  spec: PaluReferenceSpec,
  batch: AttentionBatch,
  inputs: PaluReferenceInputs,
): PaluReferenceOutputs {
  validateAttentionBatch({ pageSize: 2 ** 30 }, batch, false);
  const { numQHeads, numKvHeads, headDim, ranksK, ranksV } = spec;
  const headsPerGroup = numKvHeads / ranksK.length;
  const group = numQHeads / numKvHeads;
  const outRow = ranksV.reduce((sum, rank) => sum + rank * headsPerGroup * group, 0);
  const out = new Float64Array(batch.numRows * outRow);
  const lse = new Float64Array(batch.numRows * numQHeads).fill(-Infinity);
  for (let s = 0; s < batch.numSeqs; s++) {
    const firstRow = batch.queryIndptr[s];
    const queryLen = batch.queryIndptr[s + 1] - firstRow;
    if (queryLen === 0) continue;
    const tokens = Array.from({ length: batch.kvLens[s] }, (_, t) => t);
    const keyRows = tokens.map((t) => inputs.keyLatents(s, t));
    const valueRows = tokens.map((t) => inputs.valueLatents(s, t));
    const offset = batch.positionOffsets?.[s] ?? 0;
    let outHead = 0;
    let upBegin = 0;
    for (let kvHead = 0; kvHead < numKvHeads; kvHead++) {
      const g = Math.floor(kvHead / headsPerGroup);
      const latentK = ranksK.slice(0, g).reduce((a, b) => a + b, 0);
      const latentV = ranksV.slice(0, g).reduce((a, b) => a + b, 0);
      const keys = keyRows.map((row, t) => {
        const key = rebuiltKey(spec, inputs, row, latentK, upBegin, kvHead, ranksK[g]);
        if (spec.rope) rotate(spec.rope, inputs.ropeFrequencies ?? [], key, offset + t);
        return key;
      });
      for (let h = 0; h < group; h++) {
        const head = kvHead * group + h;
        for (let i = 0; i < queryLen; i++) {
          const row = firstRow + i;
          const position = batch.kvLens[s] - queryLen + i;
          const q = Float64Array.from({ length: headDim }, (_, d) => inputs.q[(row * numQHeads + head) * headDim + d]);
          if (spec.rope?.queries) rotate(spec.rope, inputs.ropeFrequencies ?? [], q, offset + position);
          const weights = softmaxRow(spec, q, keys, position, inputs.alibiSlopes?.[head]);
          lse[row * numQHeads + head] = weights.lse;
          for (let r = 0; r < ranksV[g]; r++) {
            let sum = 0;
            weights.weights.forEach((weight, t) => {
              sum += weight * valueRows[weights.begin + t][latentV + r];
            });
            out[row * outRow + outHead + r] = sum;
          }
        }
        outHead += ranksV[g];
      }
      upBegin += ranksK[g] * headDim;
    }
  }
  return { out, lse };
}

function rebuiltKey(
  { headDim }: PaluReferenceSpec,
  { upK, keyBias }: PaluReferenceInputs,
  latents: ArrayLike<number>,
  begin: number,
  upBegin: number,
  kvHead: number,
  rank: number,
): Float64Array {
  const key = new Float64Array(headDim);
  for (let d = 0; d < headDim; d++) {
    let sum = keyBias?.[kvHead * headDim + d] ?? 0;
    for (let r = 0; r < rank; r++) sum += latents[begin + r] * upK[upBegin + r * headDim + d];
    key[d] = sum;
  }
  return key;
}

function rotate(
  { style, dim, offset = 0 }: KeyRopeSpec,
  frequencies: ArrayLike<number>,
  vector: Float64Array,
  position: number,
): void {
  for (let i = 0; i < dim / 2; i++) {
    const first = offset + (style === "halves" ? i : 2 * i);
    const second = style === "halves" ? first + dim / 2 : first + 1;
    const [cos, sin] = [Math.cos(position * frequencies[i]), Math.sin(position * frequencies[i])];
    const [a, b] = [vector[first], vector[second]];
    vector[first] = a * cos - b * sin;
    vector[second] = b * cos + a * sin;
  }
}

function softmaxRow(
  { causal, slidingWindow, softCap, smScale }: PaluReferenceSpec,
  q: Float64Array,
  keys: readonly Float64Array[],
  position: number,
  slope: number | undefined,
): { readonly begin: number; readonly weights: readonly number[]; readonly lse: number } {
  const end = causal ? Math.min(keys.length, position + 1) : keys.length;
  const begin = slidingWindow === undefined ? 0 : Math.max(0, position - slidingWindow + 1);
  if (end <= begin) return { begin, weights: [], lse: -Infinity };
  const logits = keys.slice(begin, end).map((key, t) => {
    let logit = smScale * key.reduce((dot, value, d) => dot + value * q[d], 0);
    if (slope !== undefined) logit += slope * (begin + t - position);
    return softCap === undefined ? logit : softCap * Math.tanh(logit / softCap);
  });
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const terms = logits.map((logit) => Math.exp(logit - max));
  const sum = terms.reduce((a, b) => a + b, 0);
  return { begin, weights: terms.map((term) => term / sum), lse: max + Math.log(sum) };
}
