/** What version 3 of ragged paged attention checks of its arguments, before and at each call. Source: tpu-inference's validate functions. */
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import { requireAxes, requireGroups, requirePositive, requireType } from "./attendOnce.ts";
import { requireInt32 } from "./int32Arrays.ts";

/** Query and key/value tile sizes: (bq, bkv) to fetch, (bq, bkv) to compute. */
export type BlockSizes = readonly [number, number, number, number];

/** Arguments that tune the original's kernel. They are checked as there, and have no other effect: there is nothing here to tune. */
export interface V3Tuning {
  readonly chunkPrefillSize?: number;
  readonly dBlockSizes?: BlockSizes;
  readonly pBlockSizes?: BlockSizes;
  readonly mBlockSizes?: BlockSizes;
  readonly vmemLimitBytes?: number;
}

/** Lengths of a call: those of the first distribution[2] sequences count, the rest may be anything. */
export interface V3Lengths {
  readonly kvLens: Int32Array;
  readonly pageIndices: Int32Array;
  readonly cuQLens: Int32Array;
  readonly distribution: Int32Array;
}

/** How far the last axis of the cache is aligned. */
const CACHE_ALIGNMENT = 128;

/** n rounded up to a multiple. */
function alignTo(n: number, multiple: number): number {
  return Math.ceil(n / multiple) * multiple;
}

/** Checks the shapes of queries, new keys and values, and the cache whose token holds `rowsOf(numKvHeads)` rows of channels. */
export function checkV3Tensors(
  queries: DeviceTensor,
  keys: DeviceTensor,
  values: DeviceTensor,
  kvCache: DeviceTensor,
  cache: { readonly rowsPerHead: 1 | 2; readonly channels: (headDim: number) => number },
): void {
  requireAxes("queries", queries, "maxTokens, numQHeads, headDim");
  requireAxes("keys", keys, "maxTokens, numKvHeads, headDim");
  requireAxes("values", values, "maxTokens, numKvHeads, headDim");
  requireAxes("kvCache", kvCache, "pages, pageSize, rows / pack, pack, channels");
  requireType("queries", queries, "f32");
  requireType("keys", keys, "f32");
  requireType("values", values, "f32");
  if (!sameShape(keys.shape, values.shape)) {
    throw new ShapeError(`values.shape = ${formatShape(values.shape)} must be keys.shape = ${formatShape(keys.shape)}`);
  }
  const [maxTokens, numQHeads, headDim] = queries.shape;
  const [keyTokens, numKvHeads, keyDim] = keys.shape;
  if (keyTokens !== maxTokens) {
    throw new ShapeError(`keys.shape[0] = ${keyTokens} must be queries.shape[0] = ${maxTokens}`);
  }
  if (keyDim !== headDim) throw new ShapeError(`keys.shape[2] = ${keyDim} must be queries.shape[2] = ${headDim}`);
  requireGroups(numQHeads, numKvHeads);
  const [numPages, pageSize, , pack] = kvCache.shape;
  if (!(pack >= 1)) throw new ShapeError(`pack = ${pack} of kvCache.shape[3] must be at least 1`);
  const rows = alignTo(cache.rowsPerHead * numKvHeads, pack);
  const expected = [numPages, pageSize, rows / pack, pack, cache.channels(headDim)];
  if (!sameShape(kvCache.shape, expected)) {
    throw new ShapeError(`kvCache.shape = ${formatShape(kvCache.shape)} must be ${formatShape(expected)}`);
  }
  if (pageSize % pack !== 0) throw new ArgumentError(`pageSize = ${pageSize} must be divisible by pack = ${pack}`);
}

/** Channels of a cache row for heads of headDim channels. */
export function alignedChannels(headDim: number): number {
  return alignTo(headDim, CACHE_ALIGNMENT);
}

/** Checks the tuning arguments, as the original does. */
export function checkV3Tuning(tuning: V3Tuning, pageSize: number): void {
  const { chunkPrefillSize, vmemLimitBytes } = tuning;
  requirePositive({ chunkPrefillSize, vmemLimitBytes });
  for (const name of ["dBlockSizes", "pBlockSizes", "mBlockSizes"] as const) {
    const sizes = tuning[name];
    if (!sizes) continue;
    const [bq, bkv, bqCompute, bkvCompute] = sizes;
    if (!(bqCompute > 0 && bq % bqCompute === 0)) {
      throw new ArgumentError(`${name}: bq = ${bq} must be divisible by a positive bqCompute, got ${bqCompute}`);
    }
    if (!(bkvCompute > 0 && bkv % bkvCompute === 0)) {
      throw new ArgumentError(`${name}: bkv = ${bkv} must be divisible by a positive bkvCompute, got ${bkvCompute}`);
    }
    for (const [part, size] of Object.entries({ bkv, bkvCompute })) {
      if (size % pageSize !== 0) {
        throw new ArgumentError(`${name}: ${part} = ${size} must be divisible by pageSize = ${pageSize}`);
      }
    }
  }
}

/** Checks lengths, of the sequences that there are only. Returns their number and the pages that the table has for each. */
export function checkV3Lengths(
  { kvLens, pageIndices, cuQLens, distribution }: V3Lengths,
  maxTokens: number,
  pageSize: number,
): { readonly numSeqs: number; readonly pagesPerSeq: number } {
  requireInt32("kvLens", kvLens);
  requireInt32("pageIndices", pageIndices);
  const maxNumSeqs = kvLens.length;
  if (pageIndices.length % maxNumSeqs !== 0) {
    throw new ShapeError(
      `pageIndices.length = ${pageIndices.length} must be divisible by maxSeqs = ${maxNumSeqs} of kvLens`,
    );
  }
  requireInt32("cuQLens", cuQLens, maxNumSeqs + 1, ", maxSeqs of kvLens and 1");
  requireInt32("distribution", distribution, 3);
  const pagesPerSeq = pageIndices.length / maxNumSeqs;
  const [decodeEnd, prefillEnd, numSeqs] = distribution;
  if (!(decodeEnd >= 0 && decodeEnd <= prefillEnd && prefillEnd <= numSeqs && numSeqs <= maxNumSeqs)) {
    throw new ArgumentError(
      `distribution = [${distribution.join(", ")}] must rise from at least 0 to at most maxSeqs = ${maxNumSeqs}`,
    );
  }
  if (cuQLens[numSeqs] > maxTokens) {
    throw new ArgumentError(`cuQLens[numSeqs] = ${cuQLens[numSeqs]} must be at most maxTokens = ${maxTokens}`);
  }
  for (let s = 0; s < numSeqs; s++) {
    const qLen = cuQLens[s + 1] - cuQLens[s];
    if (!(qLen > 0 && qLen <= kvLens[s])) {
      throw new ArgumentError(`qLen = ${qLen} must be from 1 to kvLens[${s}] = ${kvLens[s]} at sequence ${s}`);
    }
    const numPages = Math.ceil(kvLens[s] / pageSize);
    if (numPages > pagesPerSeq) {
      throw new ArgumentError(
        `pagesPerSeq = ${pagesPerSeq} must be at least ${numPages} for kvLens[${s}] = ${kvLens[s]} and pageSize = ${pageSize}`,
      );
    }
  }
  return { numSeqs, pagesPerSeq };
}
