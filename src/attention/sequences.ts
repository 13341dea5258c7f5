/**
 * A batch from a list of its sequences, for callers who are not after the last microsecond: tests, tools, first steps. Engines fill the arrays of
 * `AttentionBatch` themselves, or take them from src/cache.
 */
import { type AttentionBatch, requireInteger } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/** One sequence of a batch. */
export interface BatchSequence {
  /** Its new tokens, the last of kvLen. */
  readonly queryLen: number;
  /** All its tokens. */
  readonly kvLen: number;
  /** The pages of its tokens, in order; for specs with a pageSize. */
  readonly pages?: ArrayLike<number>;
  /** The row of its first key, for specs without a pageSize. 0 by default. */
  readonly firstRow?: number;
}

/**
 * The sequences one after the other, their query rows without gaps from row 0 on. Throws ArgumentError for lengths, pages and rows that are
 * none, and for a list with and without pages; what else does not fit is found by `plan`.
 *
 * @param numPages Pages of the pool, or rows of contiguous keys.
 */
export function batchOf(sequences: readonly BatchSequence[], numPages: number): AttentionBatch {
  requireInteger("numPages", numPages, 0);
  const queryIndptr = new Int32Array(sequences.length + 1);
  const pageIndptr = new Int32Array(sequences.length + 1);
  const isPaged = sequences[0]?.pages !== undefined;
  for (const [s, { queryLen, kvLen, pages, firstRow }] of sequences.entries()) {
    requireInteger(`sequences[${s}].queryLen`, queryLen, 0);
    requireInteger(`sequences[${s}].kvLen`, kvLen, 0);
    if ((pages !== undefined) !== isPaged || (isPaged && firstRow !== undefined)) {
      throw new ArgumentError(
        `sequences[${s}] must have ${isPaged ? "pages and no firstRow" : "no pages"}, as sequences[0] has`,
      );
    }
    if (firstRow !== undefined) requireInteger(`sequences[${s}].firstRow`, firstRow, 0);
    for (const [j, page] of Array.from(pages ?? []).entries()) requireInteger(`sequences[${s}].pages[${j}]`, page, 0);
    queryIndptr[s + 1] = queryIndptr[s] + queryLen;
    pageIndptr[s + 1] = pageIndptr[s] + (pages?.length ?? 1);
  }
  const lengths = {
    numRows: queryIndptr[sequences.length],
    numSeqs: sequences.length,
    queryIndptr,
    kvLens: Int32Array.from(sequences, ({ kvLen }) => kvLen),
    numPages,
  };
  if (!isPaged) {
    const blockTables = Int32Array.from(sequences, ({ firstRow }) => firstRow ?? 0);
    return { ...lengths, blockTables, maxPages: 1 };
  }
  const blockTables = Int32Array.from(sequences.flatMap(({ pages }) => Array.from(pages ?? [])));
  return { ...lengths, blockTables, pageIndptr, maxPages: 0 };
}
