/**
 * Which slots the new tokens of a step go to, from the ragged lengths and page lists that FlashInfer (arXiv 2501.01005) describes a cache
 * with. On the host, once a step; the writing is `appendKv`'s and `appendMla`'s.
 */
import { ArgumentError } from "../../tensor/index.ts";

/** Of each new token: its sequence (-1: none) and its position in it. */
export interface TokenPlaces {
  readonly batchIndices: Int32Array;
  readonly positions: Int32Array;
}

/**
 * Sequences and positions of new tokens that lie one sequence after the other: rows appendIndptr[s] up to appendIndptr[s + 1] are the last of
 * the seqLens[s] tokens of sequence s, the new ones counted. Rows from appendIndptr[numSeqs] up to `numRows` are padding: sequence -1,
 * position 0. FlashInfer's get_batch_indices_positions, whose nnz is `numRows`.
 *
 * Throws ArgumentError for offsets that fall or exceed `numRows`, for lengths that are no whole numbers, and for more new tokens than the
 * sequence has.
 */
export function getBatchIndicesPositions(
  appendIndptr: ArrayLike<number>,
  seqLens: ArrayLike<number>,
  numRows: number,
): TokenPlaces {
  const numSeqs = appendIndptr.length - 1;
  if (appendIndptr[0] !== 0) throw new ArgumentError(`appendIndptr[0] must be 0, got ${appendIndptr[0]}`);
  if (seqLens.length < numSeqs) {
    throw new ArgumentError(`seqLens must have an entry for each of ${numSeqs} sequences, got ${seqLens.length}`);
  }
  const batchIndices = new Int32Array(numRows).fill(-1);
  const positions = new Int32Array(numRows);
  for (let s = 0; s < numSeqs; s++) {
    const [begin, end] = [appendIndptr[s], appendIndptr[s + 1]];
    if (end < begin || end > numRows) {
      throw new ArgumentError(
        `appendIndptr must not fall nor exceed the ${numRows} rows, got ${begin} then ${end} for sequence ${s}`,
      );
    }
    if (!Number.isInteger(end) || !Number.isInteger(seqLens[s])) {
      throw new ArgumentError(
        `appendIndptr[${s + 1}] and seqLens[${s}] must be whole numbers, got ${end} and ${seqLens[s]}`,
      );
    }
    if (end - begin > seqLens[s]) {
      throw new ArgumentError(
        `seqLens[${s}] = ${seqLens[s]} must count the ${end - begin} new tokens of the sequence too`,
      );
    }
    for (let row = begin; row < end; row++) {
      batchIndices[row] = s;
      positions[row] = seqLens[s] - end + row;
    }
  }
  return { batchIndices, positions };
}

/**
 * Tokens of each sequence: all its pages are full but the last, which holds kvLastPageLen[s], from 1 to pageSize. A sequence without pages
 * has none, whatever its entry says. FlashInfer's get_seq_lens.
 *
 * Throws ArgumentError naming the length that is out of range: a full last page has pageSize tokens, not 0.
 */
export function getSeqLens(
  kvIndptr: ArrayLike<number>,
  kvLastPageLen: ArrayLike<number>,
  pageSize: number,
): Int32Array {
  return Int32Array.from({ length: kvIndptr.length - 1 }, (_, s) => {
    const numPages = kvIndptr[s + 1] - kvIndptr[s];
    if (numPages < 0) {
      throw new ArgumentError(`kvIndptr must not fall, got ${kvIndptr[s]} then ${kvIndptr[s + 1]} for sequence ${s}`);
    }
    if (numPages === 0) return 0;
    const last = kvLastPageLen[s];
    if (!Number.isInteger(last) || last < 1 || last > pageSize) {
      throw new ArgumentError(`kvLastPageLen[${s}] must be an integer from 1 to pageSize = ${pageSize}, got ${last}`);
    }
    return (numPages - 1) * pageSize + last;
  });
}

/**
 * The slot of each token, page * pageSize + offset: pages kvIndices[kvIndptr[s]] up to kvIndices[kvIndptr[s + 1]] are those of sequence s, in
 * order. -1 for a token without sequence. With `appendKv` this is FlashInfer's append_paged_kv_cache, with `appendMla` its
 * append_paged_mla_kv_cache.
 *
 * Throws ArgumentError for a position past the pages of its sequence, a page that is none, and two tokens in one slot: a page that sequences share must be
 * copied before one of them is appended to.
 */
export function slotMappingOf(
  { batchIndices, positions }: TokenPlaces,
  kvIndices: ArrayLike<number>,
  kvIndptr: ArrayLike<number>,
  pageSize: number,
): Int32Array {
  const writers = new Map<number, number>();
  return batchIndices.map((sequence, token) => {
    if (sequence === -1) return -1;
    if (sequence < 0 || sequence + 1 >= kvIndptr.length) {
      throw new ArgumentError(
        `batchIndices[${token}] = ${sequence} is not a sequence: there are ${kvIndptr.length - 1} (-1 is none)`,
      );
    }
    const position = positions[token];
    const pageIndex = Math.floor(position / pageSize);
    const numPages = kvIndptr[sequence + 1] - kvIndptr[sequence];
    if (position < 0 || pageIndex >= numPages) {
      throw new ArgumentError(
        `positions[${token}] = ${position} is not in the ${numPages} pages of ${pageSize} tokens of sequence ${sequence}`,
      );
    }
    const place = kvIndptr[sequence] + pageIndex;
    const page = kvIndices[place];
    if (!Number.isInteger(page) || page < 0) {
      throw new ArgumentError(`kvIndices[${place}] = ${page} must be a page of sequence ${sequence}`);
    }
    const slot = page * pageSize + (position % pageSize);
    const other = writers.get(slot);
    if (other !== undefined) {
      throw new ArgumentError(
        `tokens ${other} and ${token} both write slot ${slot}: sequences ${batchIndices[other]} and ${sequence} share its page`,
      );
    }
    writers.set(slot, token);
    return slot;
  });
}
