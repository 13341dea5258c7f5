/** What runs a ragged batch: the interface between the engine above and the networks here. */

import type { PageCopy } from "../cache/index.ts";

/**
 * The tokens of one step, flat over all sequences: prefill chunks and single decode tokens alike.
 * The arrays are views of buffers that the engine reuses: valid until the next step, never to be kept.
 *
 * Contract with the cache: in every layer the keys and values of the whole batch are written (by `slotMapping`) before its attention
 * reads any page. A sequence may share pages that an earlier sequence of the same batch writes.
 */
export interface RaggedBatch {
  /** T: number of tokens. */
  readonly numTokens: number;
  /** S: number of sequences. */
  readonly numSeqs: number;
  /** [T] */
  readonly tokenIds: Int32Array;
  /** [T] index of each token in its sequence. */
  readonly positions: Int32Array;
  /** [T] where each token's key and value go: page * pageSize + offset. */
  readonly slotMapping: Int32Array;
  /** [S + 1] tokens of sequence s are rows queryIndptr[s] to queryIndptr[s + 1] - 1. */
  readonly queryIndptr: Int32Array;
  /** [S] keys each sequence has, this step's tokens counted. */
  readonly kvLens: Int32Array;
  /** [S] tokens of each sequence's prompt: models whose position embedding depends on the length go by it. Absent: `kvLens`. */
  readonly promptLens?: Int32Array;
  /** [S, maxPages] row-major; entries past a sequence's last page are 0 and mean nothing. */
  readonly blockTables: Int32Array;
  /** Row stride of `blockTables`: the longest table of this batch. */
  readonly maxPages: number;
  /** [R] ascending flat rows whose logits are wanted; may be empty. */
  readonly logitsRows: Int32Array;
  /** Someone will ask for log-probabilities: the device should compute `logSumExp` too. */
  readonly wantsLogSumExp?: boolean;
}

/** Logits of the rows asked for: row i answers `logitsRows[i]`. */
export interface LogitsBatch {
  readonly numRows: number;
  readonly vocabSize: number;
  /** [vocabSize] a view, valid until the next `execute`. */
  row(index: number): Float32Array;
  /** [numRows] index of each row's largest logit (the lowest such index), where the device computes it. */
  readonly greedy?: Int32Array;
  /** [numRows] natural log of the sum of exp(logit), where the device computes it. */
  readonly logSumExp?: Float32Array;
}

/** One model on one device, together with the bytes of its cache pages. */
export interface ModelRunner {
  readonly vocabSize: number;
  /** Longest sequence the model may see, in tokens. */
  readonly maxPositions: number;
  /** Tokens per cache page. */
  readonly pageSize: number;
  readonly numPages: number;
  /** Sequences may share cached pages only if this gives the same text for their prompt lengths. Absent: always. */
  cacheVariant?(promptLength: number): string;
  /** Runs the batch through the network. Rejects with DeviceError when the device fails; then nothing is known of the pages it wrote. */
  execute(batch: RaggedBatch): Promise<LogitsBatch>;
  /** Copies whole pages in every layer, in the order given, before the next `execute`. */
  copyPages(copies: readonly PageCopy[]): void;
  close(): Promise<void> | void;
}
