/**
 * The definition of attention over a paged latent cache, in float64: dense over pages, and over lists of slots. A whole layer from
 * hidden states to hidden states, without absorption, is in reference.ts.
 */
import { type AttentionBatch, tableOffset, validateAttentionBatch } from "../../ops/attention/index.ts";
import { headProjection } from "../../ops/headProjection/index.ts";
import { type RopeSpec, ropeReference } from "../../ops/rope/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { MlaDims } from "./dims.ts";

/** What of the attention has a meaning; the rest says how it is stored or computed. */
export interface MlaReferenceSpec extends MlaDims {
  readonly pageSize: number;
  readonly smScale: number;
  readonly causal: boolean;
  /** The cache holds keys that are not rotated: they and the queries are, at their positions. */
  readonly rope?: RopeSpec;
}

/** Plain numbers; caches of other storages are decoded by the caller. */
export interface MlaReferenceInputs {
  /** [numRows, numHeads, qkNopeHeadDim]; needs kvBProj. */
  readonly qNope?: ArrayLike<number>;
  /** [numRows, numHeads, kvLoraRank]: queries that have absorbed W_UK already, in place of qNope. */
  readonly qLatent?: ArrayLike<number>;
  /** [numRows, numHeads, qkRopeHeadDim]; absent if that is 0. */
  readonly qPe?: ArrayLike<number>;
  /** [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank] */
  readonly kvBProj?: ArrayLike<number>;
  /** [pages, pageSize, kvLoraRank] */
  readonly ckvCache: ArrayLike<number>;
  /** [pages, pageSize, qkRopeHeadDim]; absent if that is 0. */
  readonly kpeCache?: ArrayLike<number>;
  /** [numHeads]: logits without key or value. */
  readonly sinks?: ArrayLike<number>;
}

/** The results of every row, rows past the batch included. */
export interface MlaReferenceOutputs {
  /** [numRows, numHeads, kvLoraRank]: weighted sums of latents. */
  readonly z: Float64Array;
  /** [numRows, numHeads, vHeadDim]: the same times W_UV; empty without kvBProj. */
  readonly o: Float64Array;
  /** [numRows, numHeads], natural logarithm, without sinks; -infinity for a row without keys. */
  readonly lse: Float64Array;
}

/** Latent attention of every row of the batch. Throws ArgumentError for lengths or pages that do not fit together. */
export function mlaReference(
  spec: MlaReferenceSpec,
  batch: AttentionBatch,
  inputs: MlaReferenceInputs,
): MlaReferenceOutputs {
  validateAttentionBatch(spec, batch);
  const { numHeads, kvLoraRank, qkRopeHeadDim, qkNopeHeadDim, vHeadDim, pageSize } = spec;
  const latents = absorbQueries(spec, inputs);
  const results = emptyResults(batch.numRows, spec);
  for (let s = 0; s < batch.numSeqs; s++) {
    const kvLen = batch.kvLens[s];
    const slots = Int32Array.from({ length: kvLen }, (_, t) => {
      return batch.blockTables[tableOffset(batch, s) + Math.floor(t / pageSize)] * pageSize + (t % pageSize);
    });
    const offset = batch.positionOffsets?.[s] ?? 0;
    const keys: Keys = {
      latent: takeRows(inputs.ckvCache, kvLoraRank, slots),
      rope: rotated(spec, takeRows(inputs.kpeCache ?? [], qkRopeHeadDim, slots), kvLen, 1, offset),
    };
    const [begin, end] = [batch.queryIndptr[s], batch.queryIndptr[s + 1]];
    const firstPosition = kvLen - (end - begin);
    const width = numHeads * qkRopeHeadDim;
    const qPe = Float64Array.from({ length: (end - begin) * width }, (_, i) => (inputs.qPe ?? [])[begin * width + i]);
    const ropeQueries = rotated(spec, qPe, end - begin, numHeads, offset + firstPosition);
    for (let row = begin; row < end; row++) {
      const seen = spec.causal ? Math.max(0, firstPosition + row - begin + 1) : kvLen;
      for (let head = 0; head < numHeads; head++) {
        const at = row * numHeads + head;
        const query: Query = {
          latent: latents.subarray(at * kvLoraRank, (at + 1) * kvLoraRank),
          rope: ropeQueries.subarray((at - begin * numHeads) * qkRopeHeadDim),
        };
        attend(spec, query, keys, seen, inputs.sinks?.[head], results, at);
      }
    }
  }
  const headRows = qkNopeHeadDim + vHeadDim;
  const expand = { kind: "expand", rows: vHeadDim, columns: kvLoraRank } as const;
  const o = inputs.kvBProj
    ? headProjection(expand, numHeads, results.z, inputs.kvBProj, qkNopeHeadDim, headRows)
    : new Float64Array(0);
  return { ...results, o };
}

/** The dimensions and the scale that attention over whole cache rows needs. */
export type SparseMlaDims = Pick<MlaReferenceSpec, "numHeads" | "kvLoraRank" | "qkRopeHeadDim" | "smScale">;

/**
 * Every query row attends its own list of tokens: q [rows, numHeads, c + rope] meets rows [slots, c + rope] of the cache; values are their first
 * c channels. `indices` [rows, topk]: slots, -1 for none; entries from `lengths[row]` on count as none.
 */
export function sparseMlaReference(
  shape: SparseMlaDims,
  inputs: {
    readonly q: ArrayLike<number>;
    readonly kvCache: ArrayLike<number>;
    readonly indices: Int32Array;
    readonly topk: number;
    readonly lengths?: ArrayLike<number>;
    readonly sinks?: ArrayLike<number>;
  },
): Pick<MlaReferenceOutputs, "z" | "lse"> {
  const { numHeads, kvLoraRank } = shape;
  const { indices, topk, q, kvCache } = inputs;
  const width = kvLoraRank + shape.qkRopeHeadDim;
  const numRows = indices.length / topk;
  const results = emptyResults(numRows, shape);
  for (let row = 0; row < numRows; row++) {
    const listed = indices.subarray(row * topk, row * topk + Math.min(topk, inputs.lengths?.[row] ?? topk));
    const rows = takeRows(
      kvCache,
      width,
      listed.filter((slot) => slot !== -1),
    );
    const keys = splitRows(rows, kvLoraRank, width);
    for (let head = 0; head < numHeads; head++) {
      const at = row * numHeads + head;
      const query = splitRows(
        Float64Array.from({ length: width }, (_, d) => q[at * width + d]),
        kvLoraRank,
        width,
      );
      attend(shape, query, keys, rows.length / width, inputs.sinks?.[head], results, at);
    }
  }
  return results;
}

/** One head's query, in its two parts. */
interface Query {
  readonly latent: Float64Array;
  readonly rope: Float64Array;
}

/** The tokens of a sequence, in their two parts. */
type Keys = Query;

/** One head of one row: writes its latent sum and its LSE. */
function attend(
  { kvLoraRank, qkRopeHeadDim, smScale }: SparseMlaDims,
  query: Query,
  keys: Keys,
  numKeys: number,
  sink: number | undefined,
  { z, lse }: Pick<MlaReferenceOutputs, "z" | "lse">,
  at: number,
): void {
  if (numKeys === 0) return;
  const logits = Float64Array.from({ length: numKeys }, (_, t) => {
    let dot = 0;
    for (let d = 0; d < kvLoraRank; d++) dot += query.latent[d] * keys.latent[t * kvLoraRank + d];
    for (let d = 0; d < qkRopeHeadDim; d++) dot += query.rope[d] * keys.rope[t * qkRopeHeadDim + d];
    return dot * smScale;
  });
  const max = logits.reduce((a, b) => Math.max(a, b));
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - max), 0);
  lse[at] = max + Math.log(sum);
  const share = sink === undefined ? 1 : 1 / (1 + Math.exp(sink - lse[at]));
  for (const [t, logit] of logits.entries()) {
    const weight = Math.exp(logit - lse[at]) * share;
    for (let d = 0; d < kvLoraRank; d++) z[at * kvLoraRank + d] += weight * keys.latent[t * kvLoraRank + d];
  }
}

function absorbQueries(spec: MlaReferenceSpec, { qNope, qLatent, kvBProj }: MlaReferenceInputs): Float64Array {
  if (qLatent) return Float64Array.from(qLatent);
  if (!qNope || !kvBProj) throw new ArgumentError("qNope and kvBProj must be given, or qLatent");
  const { numHeads, qkNopeHeadDim, kvLoraRank, vHeadDim } = spec;
  const absorb = { kind: "absorb", rows: qkNopeHeadDim, columns: kvLoraRank } as const;
  return headProjection(absorb, numHeads, qNope, kvBProj, 0, qkNopeHeadDim + vHeadDim);
}

/** Heads of consecutive positions, rotated if the spec says so. */
function rotated(
  { rope }: MlaReferenceSpec,
  x: Float64Array,
  numTokens: number,
  numHeads: number,
  firstPosition: number,
): Float64Array {
  if (!rope) return x;
  const positions = Int32Array.from({ length: numTokens }, (_, i) => firstPosition + i);
  return ropeReference(rope, x, positions, numHeads);
}

function emptyResults(numRows: number, { numHeads, kvLoraRank }: SparseMlaDims) {
  return {
    z: new Float64Array(numRows * numHeads * kvLoraRank),
    lse: new Float64Array(numRows * numHeads).fill(-Infinity),
  };
}

function takeRows(rows: ArrayLike<number>, width: number, indices: Int32Array): Float64Array {
  return Float64Array.from({ length: indices.length * width }, (_, i) => {
    return rows[indices[Math.floor(i / width)] * width + (i % width)];
  });
}

function splitRows(rows: Float64Array, first: number, width: number): Keys {
  return { latent: rows.filter((_, i) => i % width < first), rope: rows.filter((_, i) => i % width >= first) };
}
