/** FlashInfer's page tables in compressed rows, and its caches: from its arguments to those of BatchAttention. */
import type { KvTensors } from "../attention/index.ts";
import { type AttentionBatch, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { requireInt32 } from "./int32Arrays.ts";

/**
 * Pages in NHD or HND: one tensor [pages, 2, pageSize, numKvHeads, headDim] with keys first, or a pair of keys and values without the 2. HND
 * swaps pageSize and numKvHeads.
 */
export type PagedKvCache = DeviceTensor | readonly [k: DeviceTensor, v: DeviceTensor];

/** As BatchAttention takes them. */
export function kvTensors(cache: PagedKvCache): KvTensors {
  return "pointer" in cache ? { kv: cache } : { k: cache[0], v: cache[1] };
}

/** The pages of each sequence: a sequence's are indices[indptr[s]] up to indices[indptr[s + 1]], the last with lastPageLen[s] tokens. */
interface PagedLengths {
  readonly indptr: Int32Array;
  readonly indices: Int32Array;
  readonly lastPageLen: Int32Array;
}

/** A batch over these pages. Throws ArgumentError or ShapeError naming the array by its name in `names`. */
export function pagedBatch(
  { indptr, indices, lastPageLen }: PagedLengths,
  queryIndptr: Int32Array,
  pageSize: number,
  names: { readonly [K in keyof PagedLengths]: string },
): AttentionBatch {
  requireInteger("pageSize", pageSize, 1);
  requireInt32(names.indptr, indptr);
  requireInt32(names.indices, indices);
  const numSeqs = indptr.length - 1;
  if (numSeqs < 0) throw new ArgumentError(`${names.indptr}.length = 0 must be the batch size and 1`);
  requireInt32(names.lastPageLen, lastPageLen, numSeqs, `, one less than ${names.indptr}`);
  const kvLens = new Int32Array(numSeqs);
  for (let s = 0; s < numSeqs; s++) {
    const held = indptr[s + 1] - indptr[s];
    if (held < 0 || indptr[s] < 0 || indptr[s + 1] > indices.length) {
      throw new ArgumentError(
        `${names.indptr}[${s + 1}] = ${indptr[s + 1]} must be from ${indptr[s]} to ${names.indices}.length = ${indices.length}`,
      );
    }
    if (held === 0) continue; // a sequence without pages has no tokens, whatever its last page length
    const last = lastPageLen[s];
    if (last < 1 || last > pageSize) {
      throw new ArgumentError(
        `${names.lastPageLen}[${s}] = ${last} must be from 1 to pageSize = ${pageSize}: a full page has that many`,
      );
    }
    kvLens[s] = (held - 1) * pageSize + last;
  }
  return listedBatch({ queryIndptr, kvLens, indptr, indices });
}

/** A batch of sequences whose pages are indices[indptr[s]] up to indices[indptr[s + 1]]. */
export function listedBatch(lists: {
  readonly queryIndptr: Int32Array;
  readonly kvLens: Int32Array;
  readonly indptr: Int32Array;
  readonly indices: Int32Array;
}): AttentionBatch {
  const { queryIndptr, kvLens, indptr, indices } = lists;
  const numSeqs = kvLens.length;
  const listed = indices.subarray(indptr[0], indptr[numSeqs]);
  return {
    numRows: queryIndptr[numSeqs],
    numSeqs,
    // Copies: a run may plan a variant later, when the caller's arrays are about the next step.
    queryIndptr: queryIndptr.slice(),
    kvLens: kvLens.slice(),
    blockTables: indices.slice(),
    pageIndptr: indptr.slice(),
    maxPages: 0,
    // The pool is not known before a run, which then has to have as many pages as the largest id needs.
    numPages: listed.reduce((most, page) => Math.max(most, page), -1) + 1,
    allowUnseeing: true,
  };
}
