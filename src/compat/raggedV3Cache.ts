/**
 * Where version 3 of ragged paged attention keeps a token: its cache [pages, pageSize, rows / pack, pack, channels] as keys and values that
 * attention reads, as rows that an append writes, and the slots of a step's tokens.
 */
import type { KvTensors } from "../attention/index.ts";
import type { AttentionBatch, ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { elementBytes } from "../tensor/index.ts";

/** Elements between the heads of a token, and from a key to its value. */
export interface V3CacheRows {
  readonly headStride: number;
  readonly valueOffset: number;
}

/** The cache as keys and values [pages, pageSize, numKvHeads, headDim] inside its wider rows. */
export function cacheView(kvCache: DeviceTensor, rows: V3CacheRows, numKvHeads: number, headDim: number): KvTensors {
  const [numPages, pageSize] = kvCache.shape;
  const slotStride = slotElements(kvCache);
  const view = {
    type: kvCache.type,
    shape: [numPages, pageSize, numKvHeads, headDim],
    strides: [pageSize * slotStride, slotStride, rows.headStride, 1],
  };
  return {
    k: { ...view, pointer: kvCache.pointer },
    v: { ...view, pointer: valuePointer(kvCache, rows) },
  };
}

/** The same as slots that an append writes: tokens of all pages one after the other. */
export function cacheRows(kvCache: DeviceTensor, rows: V3CacheRows, storage: ElementStorage) {
  const [numPages, pageSize] = kvCache.shape;
  const slots = {
    type: storage,
    numSlots: numPages * pageSize,
    slotStride: slotElements(kvCache),
    headStride: rows.headStride,
  };
  return {
    kPages: { ...slots, pointer: kvCache.pointer },
    vPages: { ...slots, pointer: valuePointer(kvCache, rows) },
  };
}

/** The slot of every row's token; -1 for rows past the sequences, which write nothing. Reads no page id of another token. */
export function slotsOf(
  { numRows, numSeqs, queryIndptr, kvLens, blockTables, maxPages }: AttentionBatch,
  pageSize: number,
): Int32Array {
  const slots = new Int32Array(numRows).fill(-1);
  for (let s = 0; s < numSeqs; s++) {
    const first = kvLens[s] - (queryIndptr[s + 1] - queryIndptr[s]);
    for (let row = queryIndptr[s]; row < queryIndptr[s + 1]; row++) {
      const token = first + row - queryIndptr[s];
      slots[row] = blockTables[s * maxPages + Math.floor(token / pageSize)] * pageSize + (token % pageSize);
    }
  }
  return slots;
}

function slotElements({ shape: [, , rows, pack, channels] }: DeviceTensor): number {
  return rows * pack * channels;
}

function valuePointer({ pointer, type }: DeviceTensor, { valueOffset }: V3CacheRows): number {
  return pointer + valueOffset * elementBytes(type);
}
