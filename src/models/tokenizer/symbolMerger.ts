/**
 * Byte-pair merging (Sennrich et al. 2016) over typed arrays, in O(n log n): which pairs may merge, and which first, is the `MergeRule`'s
 * matter.
 */

import { MergeQueue } from "./mergeQueue.ts";

/** What a vocabulary knows about merging. Texts are UTF-8 bytes, and `begin..end` a range of them. */
export interface MergeRule {
  /** The token of a single character, or -1. */
  characterId(bytes: Uint8Array, begin: number, end: number): number;
  /** The merge of two neighbours that together are `begin..end`, or -1. Unknown characters have id -1. */
  mergeOf(leftId: number, rightId: number, bytes: Uint8Array, begin: number, end: number): number;
  /** Merges of higher priority come first; of equal ones, the leftmost. */
  priorityOf(merge: number): number;
  /** The token that a merge makes. */
  resultOf(merge: number): number;
  /** Appends what stands for a character that is no token. */
  emitUnknown(bytes: Uint8Array, begin: number, end: number, ids: number[]): void;
}

/** Longer lists than this are given up when a short text follows. */
const KEPT_SYMBOLS = 1 << 16;

const CACHED_WORDS = 8192;
const CACHED_LENGTH = 32;

/** Merges words, that is, stretches of text that no merge reaches beyond. */
export class SymbolMerger {
  readonly #rule: MergeRule;
  readonly #queue = new MergeQueue();
  readonly #encoder = new TextEncoder();
  /** The ids of short words met before: natural text repeats them. Emptied when full. */
  readonly #known = new Map<string, readonly number[]>();
  #bytes: Uint8Array = new Uint8Array(0);
  // Symbols form a doubly linked list in text order; a symbol that was merged into its left neighbour has length 0.
  #begins = new Int32Array(0);
  #lengths = new Int32Array(0);
  #ids = new Int32Array(0);
  #previous = new Int32Array(0);
  #next = new Int32Array(0);

  constructor(rule: MergeRule) {
    this.#rule = rule;
  }

  /** Appends the ids of `word`, which may be a whole text. Unpaired surrogates count as U+FFFD. */
  encodeWord(word: string, ids: number[]): void {
    if (word.length > CACHED_LENGTH) {
      this.#merge(word, ids);
      return;
    }
    let known = this.#known.get(word);
    if (known === undefined) {
      const merged: number[] = [];
      this.#merge(word, merged);
      if (this.#known.size === CACHED_WORDS) this.#known.clear();
      this.#known.set(word, merged);
      known = merged;
    }
    for (const id of known) ids.push(id);
  }

  #merge(word: string, ids: number[]): void {
    if (word.length === 0) return;
    this.#reserve(word.length);
    const { written } = this.#encoder.encodeInto(word, this.#bytes);
    const numSymbols = this.#readSymbols(written);
    this.#queue.reset(numSymbols);
    for (let symbol = 0; symbol + 1 < numSymbols; symbol++) this.#propose(symbol, symbol + 1);
    this.#mergeAll();
    for (let symbol = 0; symbol >= 0; symbol = this.#next[symbol]) {
      const begin = this.#begins[symbol];
      if (this.#ids[symbol] >= 0) ids.push(this.#ids[symbol]);
      else this.#rule.emitUnknown(this.#bytes, begin, begin + this.#lengths[symbol], ids);
    }
  }

  #mergeAll(): void {
    const queue = this.#queue;
    const lengths = this.#lengths;
    while (queue.pop()) {
      const { left, right } = queue;
      // Outdated if one of the two has been merged since: it is gone, or longer than it was.
      if (lengths[left] === 0 || lengths[right] === 0 || lengths[left] + lengths[right] !== queue.numBytes) continue;
      lengths[left] = queue.numBytes;
      lengths[right] = 0;
      this.#ids[left] = this.#rule.resultOf(queue.merge);
      const after = this.#next[right];
      this.#next[left] = after;
      if (after >= 0) this.#previous[after] = left;
      if (this.#previous[left] >= 0) this.#propose(this.#previous[left], left);
      if (after >= 0) this.#propose(left, after);
    }
  }

  /** Fills the list with the characters of the text; returns how many there are. */
  #readSymbols(numBytes: number): number {
    const bytes = this.#bytes;
    let count = 0;
    for (let begin = 0; begin < numBytes; count++) {
      const lead = bytes[begin];
      const length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      this.#begins[count] = begin;
      this.#lengths[count] = length;
      this.#ids[count] = this.#rule.characterId(bytes, begin, begin + length);
      this.#previous[count] = count - 1;
      this.#next[count] = count + 1;
      begin += length;
    }
    this.#next[count - 1] = -1;
    return count;
  }

  /** Makes room for a word of so many UTF-16 code units: at most as many characters, and three bytes for each. */
  #reserve(numSymbols: number): void {
    const capacity = this.#begins.length;
    if (numSymbols <= capacity && (capacity <= KEPT_SYMBOLS || 8 * numSymbols > capacity)) return;
    const newCapacity = Math.max(256, 2 * numSymbols);
    this.#bytes = new Uint8Array(3 * newCapacity);
    this.#begins = new Int32Array(newCapacity);
    this.#lengths = new Int32Array(newCapacity);
    this.#ids = new Int32Array(newCapacity);
    this.#previous = new Int32Array(newCapacity);
    this.#next = new Int32Array(newCapacity);
    this.#queue.reserve(newCapacity);
  }

  /** Queues the merge of two neighbours if there is one. */
  #propose(left: number, right: number): void {
    const begin = this.#begins[left];
    const numBytes = this.#lengths[left] + this.#lengths[right];
    const merge = this.#rule.mergeOf(this.#ids[left], this.#ids[right], this.#bytes, begin, begin + numBytes);
    if (merge >= 0) this.#queue.push(this.#rule.priorityOf(merge), left, right, merge, numBytes);
  }
}
