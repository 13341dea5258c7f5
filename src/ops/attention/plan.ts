/**
 * The work list of ragged attention: which query tile meets which keys, as typed arrays. Made on the host once a step, executed for every
 * layer, on every device. Arrays only grow, so a steady state allocates nothing. Running it is the devices' business.
 *
 * A query tile is a few neighbouring tokens of one sequence with up to 32 query heads of a key/value head. It is one task, or, where it
 * is a large part of the whole step, one for each chunk of keys; the partial results of its chunks are then merged in their order. Either
 * way the same sums run in the same order, so the plan never shows in the result.
 */
import { type AttentionBatch, tableOffset, validateAttentionBatch } from "./batch.ts";
import { type AttentionSpec, defaultSplitSize, validateAttentionSpec } from "./contract.ts";

/** Keys per block: the unit of masking and of the online softmax, at absolute positions. */
export const keyBlock = 32;

/** Query rows (tokens times query heads) that a tile aims at. */
const targetTileRows = 32;

/** Words of a work item: first query row, tokens, sequence, position of the first token, key begin, key end, partial row or -1, unused. */
export const itemWords = 8;

/** Words of a merge item: first query row, tokens, first partial row, chunks. */
export const mergeWords = 4;

/** What a sequence's words say, by their places: see AttentionBatch. */
export const sequenceWord = {
  /** Place of its first page id. */
  pageIds: 0,
  kvLen: 1,
  /** First query row. */
  firstRow: 2,
  /** Absolute position of key 0. */
  positionOffset: 3,
  /** First byte of its mask. */
  maskByte: 4,
  /** Of its recent tokens the first position, and the window. */
  recentStart: 5,
  window: 6,
} as const;

/** Words of a sequence; the last is unused. */
export const sequenceWords = 8;

type Heads = Pick<AttentionSpec, "numQHeads" | "numKvHeads">;

/** How the query heads of a key/value head are dealt to tasks: `tiles` tasks of `heads` heads, of which the last may have fewer. */
export function headTiles({ numQHeads, numKvHeads }: Heads): { readonly tiles: number; readonly heads: number } {
  const group = numQHeads / numKvHeads;
  const heads = Math.ceil(group / Math.ceil(group / targetTileRows));
  return { tiles: Math.ceil(group / heads), heads };
}

/** Tokens in a full query tile. */
export function queryTile(spec: Heads): number {
  return Math.max(1, Math.floor(targetTileRows / headTiles(spec).heads));
}

/** Tasks of one work item or merge item: one for each key/value head and tile of its query heads. */
export function tasksPerItem(spec: Heads): number {
  return spec.numKvHeads * headTiles(spec).tiles;
}

/**
 * The plan of one step. Chunk c of a merge item has its rows from partialRow + c * tokens * numQHeads on; in them, a task that begins with
 * query head h has its own, [token][head], from tokens * h on.
 */
export class AttentionPlan {
  readonly spec: AttentionSpec;
  readonly #threads: number;
  #batch: AttentionBatch | undefined;
  #items = new Int32Array(64 * itemWords);
  #merges = new Int32Array(16 * mergeWords);
  #sequences = new Int32Array(16 * sequenceWords);
  #numItems = 0;
  #numMerges = 0;
  #numPartialRows = 0;

  /** @param threads How many workers should find something to do; it changes the work list, never the result. */
  constructor(spec: AttentionSpec, threads = 8) {
    validateAttentionSpec(spec);
    this.spec = spec;
    this.#threads = threads;
  }

  /** [numItems, itemWords] */
  get items(): Int32Array {
    return this.#items.subarray(0, this.#numItems * itemWords);
  }
  get numItems(): number {
    return this.#numItems;
  }
  /** [numMerges, mergeWords] */
  get merges(): Int32Array {
    return this.#merges.subarray(0, this.#numMerges * mergeWords);
  }
  get numMerges(): number {
    return this.#numMerges;
  }
  /** [at least 1, sequenceWords] */
  get sequences(): Int32Array {
    return this.#sequences.subarray(0, Math.max(1, this.batch.numSeqs) * sequenceWords);
  }
  /** Rows of value channels that the partial results take. */
  get numPartialRows(): number {
    return this.#numPartialRows;
  }
  /** The batch of the last `update`. Throws before the first. */
  get batch(): AttentionBatch {
    if (!this.#batch) throw new Error("AttentionPlan.update was never called");
    return this.#batch;
  }

  /**
   * Plans a step. Throws ArgumentError for lengths or page ids that do not fit together; `checkPages: false` leaves the page ids unread.
   */
  update(batch: AttentionBatch, options: { readonly checkPages?: boolean } = {}): void {
    validateAttentionBatch(this.spec, batch, options.checkPages);
    this.#batch = batch;
    this.#fillSequences(batch);
    this.#numItems = 0;
    this.#numMerges = 0;
    this.#numPartialRows = 0;
    const totalWork = this.#totalWork(batch) * tasksPerItem(this.spec);
    const splitWork = this.#threads === 1 ? Infinity : totalWork / (4 * this.#threads);
    const tile = queryTile(this.spec);
    for (let s = 0; s < batch.numSeqs; s++) {
      const begin = batch.queryIndptr[s];
      const queryLen = batch.queryIndptr[s + 1] - begin;
      // The last tiles see the most keys: they go first, so that no thread is left with one at the end.
      for (let i = Math.floor((queryLen - 1) / tile) * tile; i >= 0; i -= tile) {
        this.#addTile(
          begin + i,
          Math.min(tile, queryLen - i),
          s,
          batch.kvLens[s] - queryLen + i,
          batch.kvLens[s],
          splitWork,
        );
      }
    }
    for (let row = batch.queryIndptr[batch.numSeqs]; row < batch.numRows; row += tile) {
      this.#addItem(row, Math.min(tile, batch.numRows - row), 0, 0, 0, 0, -1);
    }
  }

  #fillSequences(batch: AttentionBatch): void {
    while (this.#sequences.length < batch.numSeqs * sequenceWords) this.#sequences = doubled(this.#sequences);
    for (let s = 0; s < batch.numSeqs; s++) {
      const at = s * sequenceWords;
      this.#sequences[at + sequenceWord.pageIds] = tableOffset(batch, s);
      this.#sequences[at + sequenceWord.kvLen] = batch.kvLens[s];
      this.#sequences[at + sequenceWord.firstRow] = batch.queryIndptr[s];
      this.#sequences[at + sequenceWord.positionOffset] = batch.positionOffsets?.[s] ?? 0;
      this.#sequences[at + sequenceWord.maskByte] = batch.customMask?.indptr[s] ?? 0;
      this.#sequences[at + sequenceWord.recentStart] = batch.recent?.starts[s] ?? batch.kvLens[s];
      this.#sequences[at + sequenceWord.window] = batch.recent?.windows[s] ?? 0;
    }
  }

  /** Keys times tokens of all tiles, for one key/value head. */
  #totalWork(batch: AttentionBatch): number {
    const tile = queryTile(this.spec);
    let work = 0;
    for (let s = 0; s < batch.numSeqs; s++) {
      const queryLen = batch.queryIndptr[s + 1] - batch.queryIndptr[s];
      for (let i = 0; i < queryLen; i += tile) {
        const tokens = Math.min(tile, queryLen - i);
        const position = batch.kvLens[s] - queryLen + i;
        work += tokens * (this.#keyEnd(position, tokens, batch.kvLens[s]) - this.#keyBegin(position));
      }
    }
    return work;
  }

  /** First key that any token of the tile sees, which is the first one's: down to a block. */
  #keyBegin(position: number): number {
    const { slidingWindow, maskValue } = this.spec;
    if (slidingWindow === undefined || maskValue !== undefined) return 0;
    return Math.floor(Math.max(0, position - slidingWindow + 1) / keyBlock) * keyBlock;
  }

  #keyEnd(position: number, tokens: number, kvLen: number): number {
    return this.spec.causal && this.spec.maskValue === undefined
      ? Math.max(0, Math.min(kvLen, position + tokens))
      : kvLen;
  }

  #addTile(row: number, tokens: number, sequence: number, position: number, kvLen: number, splitWork: number): void {
    const { numQHeads, splitSize = defaultSplitSize } = this.spec;
    const keyBegin = this.#keyBegin(position);
    const keyEnd = this.#keyEnd(position, tokens, kvLen);
    const firstChunk = Math.floor(keyBegin / splitSize);
    const numChunks = Math.ceil(keyEnd / splitSize) - firstChunk;
    // The heads of one token's chunk run one after the other, and read neighbouring parts of the same pages.
    const sharesPages = tokens === 1 && this.spec.numKvHeads > 1;
    if (numChunks < 2 || (!sharesPages && tokens * (keyEnd - keyBegin) <= splitWork)) {
      this.#addItem(row, tokens, sequence, position, keyBegin, keyEnd, -1);
      return;
    }
    this.#addMerge(row, tokens, this.#numPartialRows, numChunks);
    for (let chunk = firstChunk; chunk < firstChunk + numChunks; chunk++) {
      const begin = Math.max(keyBegin, chunk * splitSize);
      const end = Math.min(keyEnd, (chunk + 1) * splitSize);
      this.#addItem(row, tokens, sequence, position, begin, end, this.#numPartialRows);
      this.#numPartialRows += tokens * numQHeads;
    }
  }

  #addItem(
    row: number,
    tokens: number,
    sequence: number,
    position: number,
    begin: number,
    end: number,
    partial: number,
  ): void {
    const at = this.#numItems * itemWords;
    if (at === this.#items.length) this.#items = doubled(this.#items);
    this.#items[at] = row;
    this.#items[at + 1] = tokens;
    this.#items[at + 2] = sequence;
    this.#items[at + 3] = position;
    this.#items[at + 4] = begin;
    this.#items[at + 5] = end;
    this.#items[at + 6] = partial;
    this.#numItems++;
  }

  #addMerge(row: number, tokens: number, partialRow: number, numChunks: number): void {
    const at = this.#numMerges * mergeWords;
    if (at === this.#merges.length) this.#merges = doubled(this.#merges);
    this.#merges[at] = row;
    this.#merges[at + 1] = tokens;
    this.#merges[at + 2] = partialRow;
    this.#merges[at + 3] = numChunks;
    this.#numMerges++;
  }
}

function doubled(array: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(2 * array.length);
  larger.set(array);
  return larger;
}
