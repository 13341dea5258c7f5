/** The ragged lengths of one attention step, and the checks on them. */
import { ArgumentError } from "../../tensor/index.ts";
import { type AttentionSpec, requireInteger } from "./contract.ts";

/**
 * Sequence s owns the query rows queryIndptr[s] up to queryIndptr[s + 1], the last ones of its kvLens[s] tokens, whose keys and values
 * are already stored. Entries past numSeqs, and page ids past the last page of a sequence, may be anything: they are never read.
 */
export interface AttentionBatch {
  /** Rows of q and out. Rows past queryIndptr[numSeqs] become zeros, with lse -infinity. */
  readonly numRows: number;
  readonly numSeqs: number;
  readonly queryIndptr: Int32Array;
  readonly kvLens: Int32Array;
  /**
   * Pages of each sequence: [sequences, maxPages], or with `pageIndptr` one list after the other (compressed rows, FlashInfer's kv_indices).
   * For a spec without pageSize: [sequences], the first row of each sequence, with maxPages 1 and numPages the number of rows.
   */
  readonly blockTables: Int32Array;
  readonly maxPages: number;
  /** Page ids of sequence s begin at blockTables[pageIndptr[s]]; maxPages then says nothing. */
  readonly pageIndptr?: Int32Array;
  /** Pages in the pool. */
  readonly numPages: number;
  /** For a spec with customMask. */
  readonly customMask?: PackedMask;
  /** Absolute position of each sequence's key 0, for specs with rope; 0 by default. */
  readonly positionOffsets?: Int32Array;
  /** For a spec with latent.recent. */
  readonly recent?: RecentTokens;
  /** Let a sequence have more queries than keys: the first ones see nothing and become zeros. Refused by default. */
  readonly allowUnseeing?: boolean;
}

/**
 * One bit for each query and key: sequence s begins at byte indptr[s], and bit i * kvLen + t (least significant first) is 1 where query
 * i sees key t. `packMask` makes it.
 */
export interface PackedMask {
  readonly bits: Uint8Array;
  readonly indptr: Int32Array;
}

/**
 * Tokens starts[s] up to kvLen of sequence s are not in pages: token t is at slot t % capacity of the sequence's window, number windows[s].
 */
export interface RecentTokens {
  readonly starts: Int32Array;
  readonly windows: Int32Array;
  /** Tokens a window holds. */
  readonly capacity: number;
  readonly numWindows: number;
}

type BatchSpec = Pick<AttentionSpec, "pageSize" | "customMask" | "latent">;

/** Place of a sequence's first page id in `blockTables`. */
export function tableOffset(batch: AttentionBatch, sequence: number): number {
  return batch.pageIndptr ? batch.pageIndptr[sequence] : sequence * batch.maxPages;
}

/**
 * Throws ArgumentError if the lengths or page ids of the batch do not fit together. Reads only what belongs to the numSeqs sequences.
 * `checkPages: false` leaves the page ids unread, for callers who know them to be right.
 */
export function validateAttentionBatch(spec: BatchSpec, batch: AttentionBatch, checkPages = true): void {
  const { numRows, numSeqs, queryIndptr, kvLens } = batch;
  requireInteger("numRows", numRows, 0);
  requireInteger("numSeqs", numSeqs, 0);
  requireLength("queryIndptr", queryIndptr, numSeqs + 1, "numSeqs + 1");
  requireLength("kvLens", kvLens, numSeqs, "numSeqs");
  if (batch.pageIndptr) requireLength("pageIndptr", batch.pageIndptr, numSeqs + 1, "numSeqs + 1");
  else if (batch.blockTables.length < numSeqs * batch.maxPages) {
    throw new ArgumentError(
      `blockTables must have at least [${numSeqs}, ${batch.maxPages}] entries, got ${batch.blockTables.length}`,
    );
  }
  if (queryIndptr[0] !== 0) throw new ArgumentError(`queryIndptr[0] must be 0, got ${queryIndptr[0]}`);
  if (batch.positionOffsets) requireLength("positionOffsets", batch.positionOffsets, numSeqs, "numSeqs");
  for (let s = 0; s < numSeqs; s++) {
    const queryLen = queryIndptr[s + 1] - queryIndptr[s];
    const kvLen = kvLens[s];
    if (queryLen < 0) {
      throw new ArgumentError(
        `queryIndptr must not fall, got ${queryIndptr[s]} then ${queryIndptr[s + 1]} for sequence ${s}`,
      );
    }
    if (kvLen < 0) throw new ArgumentError(`kvLens[${s}] must not be negative, got ${kvLen}`);
    if (queryLen > kvLen && !batch.allowUnseeing) {
      throw new ArgumentError(
        `sequence ${s} has ${queryLen} queries but kvLens[${s}] = ${kvLen}: kvLens counts the query tokens`,
      );
    }
    validateTable(spec, batch, s, checkPages);
  }
  if (queryIndptr[numSeqs] > numRows) {
    throw new ArgumentError(`queryIndptr[numSeqs] = ${queryIndptr[numSeqs]} must not exceed numRows = ${numRows}`);
  }
  if (spec.customMask) validateMask(batch);
  if (spec.latent?.recent) validateRecent(batch);
}

function validateTable({ pageSize }: BatchSpec, batch: AttentionBatch, s: number, checkPages: boolean): void {
  const { blockTables, numPages, pageIndptr } = batch;
  const kvLen = batch.kvLens[s];
  const at = tableOffset(batch, s);
  if (pageSize === undefined) {
    const first = blockTables[at];
    if (kvLen > 0 && (first < 0 || first + kvLen > numPages)) {
      throw new ArgumentError(
        `blockTables[${s}] = ${first} and kvLens[${s}] = ${kvLen} reach past the ${numPages} rows of keys`,
      );
    }
    return;
  }
  const held = pageIndptr ? pageIndptr[s + 1] - at : batch.maxPages;
  if (pageIndptr && (at < 0 || held < 0 || at + held > blockTables.length)) {
    throw new ArgumentError(
      `pageIndptr must not fall nor exceed the ${blockTables.length} page ids, got ${at} then ${at + held} for sequence ${s}`,
    );
  }
  const fromPages = batch.recent ? Math.min(kvLen, batch.recent.starts[s]) : kvLen;
  const pagesNeeded = Math.ceil(fromPages / pageSize);
  if (pagesNeeded > held) {
    throw new ArgumentError(
      `kvLens[${s}] = ${kvLen} needs ${pagesNeeded} pages of ${pageSize} tokens, but blockTables has ${held} ${pageIndptr ? "for it" : "a sequence"}`,
    );
  }
  if (!checkPages) return;
  for (let j = 0; j < pagesNeeded; j++) {
    const page = blockTables[at + j];
    if (page < 0 || page >= numPages) {
      throw new ArgumentError(`blockTables[${s}][${j}] = ${page} is not a page: the pool has ${numPages}`);
    }
  }
}

function validateMask({ customMask, numSeqs, queryIndptr, kvLens }: AttentionBatch): void {
  if (!customMask) throw new ArgumentError("customMask must be given because the spec has customMask");
  const { bits, indptr } = customMask;
  requireLength("customMask.indptr", indptr, numSeqs, "numSeqs");
  for (let s = 0; s < numSeqs; s++) {
    const numBytes = Math.ceil(((queryIndptr[s + 1] - queryIndptr[s]) * kvLens[s]) / 8);
    if (numBytes > 0 && (indptr[s] < 0 || indptr[s] + numBytes > bits.length)) {
      throw new ArgumentError(
        `customMask.indptr[${s}] = ${indptr[s]} and ${numBytes} bytes for sequence ${s} reach past the ${bits.length} bytes of the mask`,
      );
    }
  }
}

function validateRecent({ recent, numSeqs, kvLens }: AttentionBatch): void {
  if (!recent) throw new ArgumentError("recent must be given because the spec has latent.recent");
  requireInteger("recent.capacity", recent.capacity, 1);
  requireLength("recent.starts", recent.starts, numSeqs, "numSeqs");
  requireLength("recent.windows", recent.windows, numSeqs, "numSeqs");
  for (let s = 0; s < numSeqs; s++) {
    const [start, window, kvLen] = [recent.starts[s], recent.windows[s], kvLens[s]];
    if (start < 0 || start > kvLen || kvLen - start > recent.capacity) {
      throw new ArgumentError(
        `recent.starts[${s}] = ${start} must leave 0 to ${recent.capacity} of the ${kvLen} tokens of the sequence`,
      );
    }
    if (start < kvLen && (window < 0 || window >= recent.numWindows)) {
      throw new ArgumentError(`recent.windows[${s}] = ${window} is not a window: there are ${recent.numWindows}`);
    }
  }
}

function requireLength(name: string, array: Int32Array, length: number, words: string): void {
  if (array.length >= length) return;
  throw new ArgumentError(`${name} must have at least ${words} = ${length} entries, got ${array.length}`);
}
