/**
 * Which tokens are in which pages, for all sequences: appending, sharing prefixes, copy-on-write, fork, rollback.
 * Bookkeeping of the host alone; the bytes are the device's, and who may have how many pages is the scheduler's decision.
 */

import { ArgumentError, CapacityError } from "../tensor/errors.ts";
import { CacheSequence } from "./cacheSequence.ts";
import { type PageListener, PagePool } from "./pagePool.ts";
import { NO_PAGE, type PageHash, PrefixIndex } from "./prefixIndex.ts";

/** The size of a cache, what its pages mean, and who listens. */
export interface KvCacheOptions {
  readonly numPages: number;
  /** Tokens per page. */
  readonly pageSize: number;
  /** Names what the bytes of a page mean (model, element types, ranks): part of every hash. Default "". */
  readonly layout?: string;
  /** Told of every page allocated, evicted, hit or freed. */
  readonly listener?: PageListener;
  /** Default MurmurHash3; tests put a bad one here. */
  readonly hash?: PageHash;
}

/** Whole page `from` must be copied to `to`, in every layer, before the next step writes. Several are to be done in order. */
export interface PageCopy {
  readonly from: number;
  readonly to: number;
}

/** Pages now, and counts since the cache was made. */
export interface KvCacheStats {
  readonly numPages: number;
  /** Pages that a sequence holds. */
  readonly usedPages: number;
  /** Pages without a holder that can still be hit. */
  readonly cachedPages: number;
  /** Pages without a holder that hold nothing of use. */
  readonly freePages: number;
  /** Tokens found by `add`, and tokens asked for. */
  readonly hitTokens: number;
  readonly queriedTokens: number;
  readonly evictions: number;
  readonly copies: number;
}

/**
 * A paged key/value cache: vLLM's block manager with fork and rollback. The work of a call is in proportion to the pages it touches.
 * Capacity is answered, not thrown: ask `canAdd` and `canAppend` first.
 */
export class KvCache {
  readonly pageSize: number;
  readonly pool: PagePool;
  readonly #index: PrefixIndex;
  /** [numPages, pageSize] the token whose key and value are in each slot. */
  readonly #tokens: Int32Array;
  /** Pages of the prefix found last. */
  readonly #prefix: Int32Array;
  #hitTokens = 0;
  #queriedTokens = 0;
  #evictions = 0;
  #copies = 0;

  /** Throws ArgumentError for a page count or page size below 1. */
  constructor(options: KvCacheOptions) {
    const { numPages, pageSize, layout = "", listener = {}, hash } = options;
    if (!Number.isSafeInteger(pageSize) || pageSize < 1)
      throw new ArgumentError(`pageSize = ${pageSize} must be at least 1`);
    this.pageSize = pageSize;
    this.pool = new PagePool(numPages, {
      onAllocate: (page) => listener.onAllocate?.(page),
      onHit: (page) => listener.onHit?.(page),
      onFree: (page) => listener.onFree?.(page),
      onEvict: (page) => {
        this.#evictions++;
        this.#index.remove(page);
        listener.onEvict?.(page);
      },
    });
    this.#tokens = new Int32Array(numPages * pageSize);
    this.#prefix = new Int32Array(numPages);
    this.#index = new PrefixIndex(this.#tokens, pageSize, layout, hash);
  }

  /** Whether a sequence of these tokens could be added and appended whole, hits counted, with `reserve` pages left over. */
  canAdd(tokens: Int32Array, numTokens: number, salt = "", reserve = 0): boolean {
    const numHits = this.#findPrefix(tokens, numTokens, salt);
    let numNeeded = this.#pagesOf(numTokens) - numHits;
    for (let index = 0; index < numHits; index++) if (this.pool.refCount(this.#prefix[index]) === 0) numNeeded++;
    return numNeeded + reserve <= this.pool.numFree;
  }

  /** A sequence without tokens, and without a look for its prefix. */
  create(salt = ""): CacheSequence {
    return new CacheSequence(salt);
  }

  /**
   * A sequence that begins with the longest cached prefix of tokens[0 .. numTokens - 1]: whole pages, and one token less than all at most,
   * since the last one has to be computed for its logits. Its `numTokens` says how many were found; append the rest.
   */
  add(tokens: Int32Array, numTokens: number, salt = ""): CacheSequence {
    const sequence = new CacheSequence(salt);
    const numHits = this.#findPrefix(tokens, numTokens, salt);
    for (let index = 0; index < numHits; index++) {
      this.pool.hit(this.#prefix[index]);
      sequence.table.append(this.#prefix[index]);
    }
    sequence.numTokens = numHits * this.pageSize;
    sequence.numCommittedTokens = sequence.numTokens;
    this.#hitTokens += sequence.numTokens;
    this.#queriedTokens += numTokens;
    return sequence;
  }

  canAppend(sequence: CacheSequence, numTokens: number): boolean {
    return this.#pagesToAppend(sequence, numTokens) <= this.pool.numFree;
  }

  /**
   * Appends tokens[begin .. end - 1] and writes their slots to slots[slotsBegin ...]. Returns the page to copy first when the last page was
   * shared. Throws CapacityError when `canAppend` says no, leaving the sequence as it was.
   */
  append(
    sequence: CacheSequence,
    tokens: Int32Array,
    begin: number,
    end: number,
    slots: Int32Array,
    slotsBegin = 0,
  ): PageCopy | undefined {
    this.#assertHeld(sequence);
    const numPages = this.#pagesToAppend(sequence, end - begin);
    if (numPages > this.pool.numFree) {
      throw new CapacityError(
        `appending ${end - begin} tokens takes ${numPages} pages; ${this.pool.numFree} of ${this.pool.numPages} are free`,
      );
    }
    const copy = end > begin ? this.#makeLastPageWritable(sequence) : undefined;
    const { table } = sequence;
    for (let index = begin; index < end; index++) {
      const offset = sequence.numTokens % this.pageSize;
      if (offset === 0) table.append(this.#allocate());
      const slot = table.at(table.length - 1) * this.pageSize + offset;
      this.#tokens[slot] = tokens[index];
      slots[slotsBegin + index - begin] = slot;
      sequence.numTokens++;
    }
    return copy;
  }

  /**
   * Makes the full pages among the first `numComputedTokens` findable. Only tokens whose keys and values are in the cache before anybody
   * else's attention can read them may be counted; tokens that may yet be rejected may not.
   */
  commit(sequence: CacheSequence, numComputedTokens: number): void {
    this.#assertHeld(sequence);
    if (numComputedTokens > sequence.numTokens) {
      throw new ArgumentError(
        `numComputedTokens = ${numComputedTokens} must not exceed the sequence's ${sequence.numTokens} tokens`,
      );
    }
    const { table, salt } = sequence;
    while (sequence.numCommittedTokens + this.pageSize <= numComputedTokens) {
      const at = sequence.numCommittedTokens / this.pageSize;
      const page = table.at(at);
      const parent = at === 0 ? NO_PAGE : table.at(at - 1);
      // After `forget` a running sequence's earlier pages cannot be found, and so neither could this one.
      if (parent !== NO_PAGE && !this.#index.has(parent)) return;
      if (!this.#index.has(page)) {
        this.#index.add(page, parent, salt);
        this.pool.setCached(page, true);
      }
      sequence.numCommittedTokens += this.pageSize;
    }
  }

  /** A second sequence with the same tokens in the same pages; whoever appends to a shared page first gets a copy. */
  fork(sequence: CacheSequence): CacheSequence {
    this.#assertHeld(sequence);
    const forked = new CacheSequence(sequence.salt);
    for (let index = 0; index < sequence.table.length; index++) {
      const page = sequence.table.at(index);
      this.pool.share(page);
      forked.table.append(page);
    }
    forked.numTokens = sequence.numTokens;
    forked.numCommittedTokens = sequence.numCommittedTokens;
    return forked;
  }

  /**
   * Takes the last `numTokens` tokens away. Pages that fall empty are released; one that is left partly filled stays as it is, and findable
   * if it was, until something is appended to it: its content is still true.
   */
  rollback(sequence: CacheSequence, numTokens: number): void {
    this.#assertHeld(sequence);
    if (!Number.isSafeInteger(numTokens) || numTokens < 0 || numTokens > sequence.numTokens) {
      throw new ArgumentError(`numTokens = ${numTokens} cannot be rolled back: the sequence has ${sequence.numTokens}`);
    }
    sequence.numTokens -= numTokens;
    sequence.numCommittedTokens = Math.min(
      sequence.numCommittedTokens,
      sequence.numTokens - (sequence.numTokens % this.pageSize),
    );
    const numPages = this.#pagesOf(sequence.numTokens);
    while (sequence.table.length > numPages) this.pool.release(sequence.table.pop());
  }

  /** Lets go of all pages, the last first, so that of what stays cached the beginning is evicted last. The sequence is of no use after. */
  free(sequence: CacheSequence): void {
    this.#assertHeld(sequence);
    while (sequence.table.length > 0) this.pool.release(sequence.table.pop());
    sequence.isFreed = true;
  }

  /** Makes no page findable any more, for when a device failed and nothing is known of what it wrote. */
  forget(): void {
    for (let page = 0; page < this.pool.numPages; page++) this.#uncache(page);
  }

  stats(): KvCacheStats {
    const { numPages, numFree, numFreeCached } = this.pool;
    return {
      numPages,
      usedPages: numPages - numFree,
      cachedPages: numFreeCached,
      freePages: numFree - numFreeCached,
      hitTokens: this.#hitTokens,
      queriedTokens: this.#queriedTokens,
      evictions: this.#evictions,
      copies: this.#copies,
    };
  }

  #findPrefix(tokens: Int32Array, numTokens: number, salt: string): number {
    let numHits = 0;
    let parent = NO_PAGE;
    for (let begin = 0; begin + this.pageSize < numTokens; begin += this.pageSize) {
      parent = this.#index.find(parent, tokens, begin, salt);
      if (parent === NO_PAGE) break;
      this.#prefix[numHits++] = parent;
    }
    return numHits;
  }

  /** Nobody else may see the last page change: neither another holder nor whoever finds it by its content. */
  #makeLastPageWritable(sequence: CacheSequence): PageCopy | undefined {
    if (sequence.numTokens % this.pageSize === 0) return undefined;
    const from = sequence.table.at(sequence.table.length - 1);
    if (this.pool.refCount(from) === 1) {
      this.#uncache(from);
      return undefined;
    }
    const to = this.#allocate();
    this.#tokens.copyWithin(to * this.pageSize, from * this.pageSize, (from + 1) * this.pageSize);
    sequence.table.replaceLast(to);
    this.pool.release(from);
    this.#copies++;
    return { from, to };
  }

  #pagesToAppend(sequence: CacheSequence, numTokens: number): number {
    if (numTokens === 0) return 0;
    const { table } = sequence;
    const isLastPartial = sequence.numTokens % this.pageSize !== 0;
    const isCopied = isLastPartial && this.pool.refCount(table.at(table.length - 1)) > 1;
    return this.#pagesOf(sequence.numTokens + numTokens) - table.length + (isCopied ? 1 : 0);
  }

  #pagesOf(numTokens: number): number {
    return Math.ceil(numTokens / this.pageSize);
  }

  #allocate(): number {
    const page = this.pool.allocate();
    if (page === undefined) throw new CapacityError(`all ${this.pool.numPages} pages are held`);
    return page;
  }

  #uncache(page: number): void {
    if (!this.#index.has(page)) return;
    this.#index.remove(page);
    this.pool.setCached(page, false);
  }

  #assertHeld(sequence: CacheSequence): void {
    if (sequence.isFreed) throw new ArgumentError("the sequence was freed and holds no pages any more");
  }
}
