/**
 * The tokens of one step, gathered in buffers that are made once and used again each step.
 * It writes down what the scheduler decides and decides nothing itself.
 */

import type { KvCache, PageCopy } from "../cache/kvCache.ts";
import type { RaggedBatch } from "./runner.ts";
import type { Sequence } from "./sequence.ts";

/** The most that one step may hold; the arrays of a batch are made for it once. */
export interface BatchCapacity {
  readonly maxNumTokens: number;
  readonly maxNumSeqs: number;
  /** Rows for prompt log-probabilities; every sequence has one row more, for its next token. */
  readonly maxNumPromptRows: number;
  /** Pages of the longest sequence. */
  readonly maxPages: number;
}

/** The decisions of the scheduler for one step, as arrays that a runner reads. Used again for every step. */
export class StepBatch {
  /** The sequences of this step, in the order of their rows. */
  readonly sequences: Sequence[] = [];
  /** Page copies to be done before the step, in order. */
  readonly copies: PageCopy[] = [];
  readonly #cache: KvCache;
  readonly #tokenIds: Int32Array;
  readonly #positions: Int32Array;
  readonly #slotMapping: Int32Array;
  readonly #queryIndptr: Int32Array;
  readonly #kvLens: Int32Array;
  readonly #promptLens: Int32Array;
  readonly #blockTables: Int32Array;
  readonly #logitsRows: Int32Array;
  /** [S + 1] a sequence's part of `logitsRows`. Kept, since a cancelled sequence no longer knows what it was part of. */
  readonly #logitsIndptr: Int32Array;
  /** [S] how many of a sequence's logits rows are for prompt log-probabilities. */
  readonly #numPromptRows: Int32Array;
  #numTokens = 0;
  #numPromptRowsInAll = 0;
  #numLogitsRows = 0;

  constructor(cache: KvCache, { maxNumTokens, maxNumSeqs, maxNumPromptRows, maxPages }: BatchCapacity) {
    this.#cache = cache;
    this.#tokenIds = new Int32Array(maxNumTokens);
    this.#positions = new Int32Array(maxNumTokens);
    this.#slotMapping = new Int32Array(maxNumTokens);
    this.#queryIndptr = new Int32Array(maxNumSeqs + 1);
    this.#kvLens = new Int32Array(maxNumSeqs);
    this.#promptLens = new Int32Array(maxNumSeqs);
    this.#blockTables = new Int32Array(maxNumSeqs * maxPages);
    this.#logitsRows = new Int32Array(Math.min(maxNumTokens, maxNumSeqs + maxNumPromptRows));
    this.#logitsIndptr = new Int32Array(maxNumSeqs + 1);
    this.#numPromptRows = new Int32Array(maxNumSeqs);
  }

  get numTokens(): number {
    return this.#numTokens;
  }

  /** Logits rows taken for prompt log-probabilities so far. */
  get numPromptRows(): number {
    return this.#numPromptRowsInAll;
  }

  clear(): void {
    this.sequences.length = 0;
    this.copies.length = 0;
    this.#numTokens = 0;
    this.#numPromptRowsInAll = 0;
    this.#numLogitsRows = 0;
  }

  /** Takes the sequence's next `numTokens` tokens into the step and into the cache, where there must be room. */
  add(sequence: Sequence, kv: NonNullable<Sequence["kv"]>, numTokens: number): void {
    const begin = sequence.numComputedTokens;
    const end = begin + numTokens;
    const row = this.#numTokens;
    for (let position = begin; position < end; position++) {
      this.#tokenIds[row + position - begin] = sequence.tokens[position];
      this.#positions[row + position - begin] = position;
    }
    const copy = this.#cache.append(kv, sequence.tokens, begin, end, this.#slotMapping, row);
    if (copy !== undefined) this.copies.push(copy);

    const at = this.sequences.push(sequence) - 1;
    this.#numTokens += numTokens;
    this.#queryIndptr[at + 1] = this.#numTokens;
    this.#kvLens[at] = end;
    this.#promptLens[at] = sequence.numPromptTokens;
    const firstRow = Math.max(begin, sequence.numReportedRows);
    const rowsEnd = Math.min(end, sequence.numReportedRows + sequence.numUnreportedRows);
    for (let position = firstRow; position < rowsEnd; position++)
      this.#logitsRows[this.#numLogitsRows++] = row + position - begin;
    this.#numPromptRows[at] = Math.max(0, rowsEnd - firstRow);
    this.#numPromptRowsInAll += this.#numPromptRows[at];
    if (end === sequence.numTokens) this.#logitsRows[this.#numLogitsRows++] = this.#numTokens - 1;
    this.#logitsIndptr[at + 1] = this.#numLogitsRows;
    sequence.numComputedTokens = end;
  }

  /** The logits rows of `sequences[index]`: first those for prompt log-probabilities, then, with all its tokens computed, its next token's. */
  rowsOf(index: number): { readonly firstRow: number; readonly numPromptRows: number; readonly hasNextRow: boolean } {
    const firstRow = this.#logitsIndptr[index];
    const numPromptRows = this.#numPromptRows[index];
    return { firstRow, numPromptRows, hasNextRow: this.#logitsIndptr[index + 1] > firstRow + numPromptRows };
  }

  /** The batch as the model takes it: views, valid until the next `clear`. */
  toRagged(): RaggedBatch {
    const numSeqs = this.sequences.length;
    let maxPages = 1;
    for (const { kv } of this.sequences) maxPages = Math.max(maxPages, kv?.table.length ?? 0);
    this.#blockTables.fill(0, 0, numSeqs * maxPages);
    for (const [index, { kv }] of this.sequences.entries()) kv?.table.copyTo(this.#blockTables, index * maxPages);
    return {
      numTokens: this.#numTokens,
      numSeqs,
      tokenIds: this.#tokenIds.subarray(0, this.#numTokens),
      positions: this.#positions.subarray(0, this.#numTokens),
      slotMapping: this.#slotMapping.subarray(0, this.#numTokens),
      queryIndptr: this.#queryIndptr.subarray(0, numSeqs + 1),
      kvLens: this.#kvLens.subarray(0, numSeqs),
      promptLens: this.#promptLens.subarray(0, numSeqs),
      blockTables: this.#blockTables.subarray(0, numSeqs * maxPages),
      maxPages,
      logitsRows: this.#logitsRows.subarray(0, this.#numLogitsRows),
      wantsLogSumExp: this.sequences.some(({ request: { sampling } }) => {
        return sampling.logprobs !== undefined || sampling.promptLogprobs !== undefined;
      }),
    };
  }
}
