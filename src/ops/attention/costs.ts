/**
 * What an attention call has to compute and to move, from shapes and lengths alone: what benchmarks divide by, and what a choice between
 * two ways rests on. Only the products are counted, a multiply-add as 2 operations, as papers and kernels' benchmarks do; no exponentials, no
 * unpacking. Bytes are those that no kernel can avoid: every input that is visible to some query once, every output once. The projections
 * around multi-head latent attention are in mlaCosts.ts.
 */
import type { AttentionBatch } from "./batch.ts";
import { type AttentionSpec, valueDim } from "./contract.ts";
import { type LatentRanks, latentLayout } from "./latent.ts";
import { type PageStorage, rowElements, rowScales, storageBytes } from "./storage.ts";

export interface Cost {
  /** A multiply-add is 2. */
  readonly operations: number;
  readonly bytes: number;
}

export interface SequenceLengths {
  readonly queryLen: number;
  /** Keys of the sequence, those of the queries included. */
  readonly kvLen: number;
}

/** What of a spec costs something. */
export type CostSpec = Omit<AttentionSpec, "smScale" | "pageSize" | "splitSize">;

/** The lengths of a batch's sequences. */
export function batchLengths({
  numSeqs,
  queryIndptr,
  kvLens,
}: Pick<AttentionBatch, "numSeqs" | "queryIndptr" | "kvLens">): SequenceLengths[] {
  return Array.from({ length: numSeqs }, (_, s) => ({
    queryLen: queryIndptr[s + 1] - queryIndptr[s],
    kvLen: kvLens[s],
  }));
}

/**
 * Pairs of a query and a key that it sees. A custom mask counts as if it were full, and so do keys that `maskValue` only lowers: kernels go
 * through them all.
 */
export function visiblePairs(spec: CostSpec, { queryLen, kvLen }: SequenceLengths): number {
  if (!spec.causal || spec.maskValue !== undefined) return queryLen * kvLen;
  const window = spec.slidingWindow ?? kvLen;
  // Keys that the queries at positions 0 to n - 1 see together.
  const upTo = (n: number): number => {
    const growing = Math.min(n, window);
    return (growing * (growing + 1)) / 2 + (n - growing) * window;
  };
  return upTo(kvLen) - upTo(Math.max(0, kvLen - queryLen));
}

/** Keys that some query of the sequence sees. */
export function visibleKeys(spec: CostSpec, { queryLen, kvLen }: SequenceLengths): number {
  if (queryLen === 0) return 0;
  if (spec.slidingWindow === undefined || spec.maskValue !== undefined) return kvLen;
  const firstPosition = Math.max(0, kvLen - queryLen);
  return kvLen - Math.max(0, firstPosition - spec.slidingWindow + 1);
}

/** Bytes of a row of so many channels, its scales included. */
export function rowBytes(storage: PageStorage, channels: number): number {
  return rowElements(storage, channels) * storageBytes(storage) + rowScales(storage, channels) * 4;
}

/** Bytes that a token's keys and values take in one layer's pages. For specs with `latent` see `latentTokenBytes`. */
export function tokenBytes(spec: CostSpec): number {
  const { headDim, numKvHeads, storage, valueStorage = storage, mla } = spec;
  const valueRow = mla ? mla.ropeDim : valueDim(spec);
  const keyRow = mla ? headDim - mla.ropeDim : headDim;
  return numKvHeads * (rowBytes(storage, keyRow) + (valueRow === 0 ? 0 : rowBytes(valueStorage, valueRow)));
}

/**
 * Attention over keys and values as they are stored, with `mla` over latents that queries and outputs are multiplied into: 2 * (headDim +
 * headDimV) operations for each query head and visible pair. Each list entry may be a decoding, appending or prefilling sequence.
 */
export function attentionCost(spec: CostSpec, lengths: readonly SequenceLengths[]): Cost {
  const { numQHeads, headDim } = spec;
  const { pairs, keys, rows } = totals(spec, lengths);
  return {
    operations: 2 * pairs * numQHeads * (headDim + valueDim(spec)),
    bytes: keys * tokenBytes(spec) + rows * rowTraffic(spec, numQHeads * valueDim(spec)),
  };
}

/** Bytes that a token's latents take in one layer's pages: the sum over the groups, keys and values. */
export function latentTokenBytes(spec: CostSpec, ranks: LatentRanks): number {
  const { storage, valueStorage = storage } = spec;
  const sum = (of: PageStorage, list: readonly number[]): number =>
    list.reduce((bytes, rank) => bytes + rowBytes(of, rank), 0);
  return sum(storage, ranks.ranksK) + sum(valueStorage, ranks.ranksV);
}

/**
 * Attention over Palu's latents. Rebuilt keys take 2 * rank * headDim operations for each key and key/value head, each time they are rebuilt,
 * and 2 * headDim for each query head and pair after that; absorbed ones take 2 * rank for each query head and pair. Values always
 * take 2 * rank. Recent tokens are counted as if they were in pages.
 *
 * @param rebuilds How many query tiles rebuild each key: 1 in decoding.
 */
export function latentAttentionCost(
  spec: CostSpec,
  ranks: LatentRanks,
  lengths: readonly SequenceLengths[],
  rebuilds = 1,
): Cost {
  const { headDim, numQHeads, numKvHeads, latent } = spec;
  const isRebuilt = latent?.keys === "rebuilt";
  const { pairs, keys, rows } = totals(spec, lengths);
  const layout = latentLayout(ranks, spec);
  const queriesPerGroup = numQHeads / layout.numGroups;
  const absorbedDims = ranks.ranksK.reduce((sum, rank) => sum + queriesPerGroup * rank, 0);
  const scoreDims = isRebuilt ? numQHeads * headDim : absorbedDims;
  const rebuiltDims = isRebuilt ? layout.upElements : 0;
  const upBytes = isRebuilt ? 4 * (layout.upElements + (latent?.bias ? numKvHeads * headDim : 0)) : 0;
  return {
    operations: 2 * pairs * (scoreDims + layout.outRow) + 2 * keys * rebuilds * rebuiltDims,
    bytes: keys * latentTokenBytes(spec, ranks) + rows * rowTraffic(spec, layout.outRow) + upBytes,
  };
}

/** Merging so many states of each row and head into one: a multiply-add for each channel of each state. */
export function mergeCost(
  spec: Pick<AttentionSpec, "numQHeads" | "headDim" | "headDimV">,
  rows: number,
  states: number,
): Cost {
  const dim = valueDim(spec);
  return {
    operations: 2 * rows * spec.numQHeads * states * dim,
    bytes: 4 * rows * spec.numQHeads * (states + 1) * (dim + 1),
  };
}

function totals(spec: CostSpec, lengths: readonly SequenceLengths[]) {
  let [pairs, keys, rows] = [0, 0, 0];
  for (const sequence of lengths) {
    pairs += visiblePairs(spec, sequence);
    keys += visibleKeys(spec, sequence);
    rows += sequence.queryLen;
  }
  return { pairs, keys, rows };
}

/** Bytes of one row of queries, its output and its LSE. */
function rowTraffic({ numQHeads, headDim, returnLse }: CostSpec, outElements: number): number {
  return 4 * (numQHeads * headDim + outElements + (returnLse ? numQHeads : 0));
}
