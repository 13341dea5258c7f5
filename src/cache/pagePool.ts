/**
 * Which pages are held and which are free: reference counts, and the free pages as a doubly linked list from least to most recently used.
 * It knows pages by number only; what they contain is the prefix index's affair, where they are needed the cache's.
 */

import { ArgumentError } from "../tensor/errors.ts";

/** Told of each change in the branch that makes it, so that an index or a router can follow the pool. */
export interface PageListener {
  /** The page has its first holder; what it contained is gone. */
  onAllocate?(page: number): void;
  /** The page was cached and is about to be allocated for something else. */
  onEvict?(page: number): void;
  /** The page was found by its content and got one more holder. */
  onHit?(page: number): void;
  /** The last holder let go; a cached page stays findable until evicted. */
  onFree?(page: number): void;
}

/**
 * A pool of `numPages` pages, numbered from 0. Every method is O(1).
 * The free list is intrusive (vLLM's design), so that a prefix hit unlinks its page from the middle.
 */
export class PagePool {
  readonly numPages: number;
  readonly #listener: PageListener;
  readonly #refCounts: Int32Array;
  /** Cached: findable by content, and therefore worth keeping as long as possible. */
  readonly #cached: Uint8Array;
  /** Neighbours in the free list; entry numPages is the list's head and tail. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #numFree: number;
  #numFreeCached = 0;

  constructor(numPages: number, listener: PageListener = {}) {
    if (!Number.isSafeInteger(numPages) || numPages < 1)
      throw new ArgumentError(`numPages = ${numPages} must be at least 1`);
    this.numPages = numPages;
    this.#listener = listener;
    this.#refCounts = new Int32Array(numPages);
    this.#cached = new Uint8Array(numPages);
    this.#next = Int32Array.from({ length: numPages + 1 }, (_, page) => (page + 1) % (numPages + 1));
    this.#previous = Int32Array.from({ length: numPages + 1 }, (_, page) => (page + numPages) % (numPages + 1));
    this.#numFree = numPages;
  }

  /** Pages without a holder, cached ones included: as many can be allocated. */
  get numFree(): number {
    return this.#numFree;
  }

  /** Pages without a holder whose content can still be hit. */
  get numFreeCached(): number {
    return this.#numFreeCached;
  }

  refCount(page: number): number {
    return this.#refCounts[page];
  }

  isCached(page: number): boolean {
    return this.#cached[page] === 1;
  }

  setCached(page: number, isCached: boolean): void {
    if (this.isCached(page) === isCached) return;
    this.#cached[page] = isCached ? 1 : 0;
    if (this.#refCounts[page] === 0) this.#numFreeCached += isCached ? 1 : -1;
  }

  /** Takes the page that was free the longest, with one reference; undefined when none is free. */
  allocate(): number | undefined {
    if (this.#numFree === 0) return undefined;
    const page = this.#next[this.numPages];
    if (this.isCached(page)) {
      this.setCached(page, false);
      this.#listener.onEvict?.(page);
    }
    this.#unlink(page);
    this.#refCounts[page] = 1;
    this.#listener.onAllocate?.(page);
    return page;
  }

  /** Adds a reference to a cached page, whether somebody holds it or not. */
  hit(page: number): void {
    if (!this.isCached(page)) throw new ArgumentError(`page ${page} is not cached: nothing in it can be found again`);
    if (this.#refCounts[page]++ === 0) {
      this.#unlink(page);
      this.#numFreeCached--;
    }
    this.#listener.onHit?.(page);
  }

  /** Adds a reference to a page that somebody holds. */
  share(page: number): void {
    if (this.#refCounts[page] === 0) throw new ArgumentError(`page ${page} is not held: it cannot be shared`);
    this.#refCounts[page]++;
  }

  /** Drops a reference. The page becomes the most recently used of the free ones when it was the last. */
  release(page: number): void {
    if (!(this.#refCounts[page] > 0))
      throw new ArgumentError(`page ${page} is not held: it was released once too often`);
    if (--this.#refCounts[page] > 0) return;
    this.#append(page);
    if (this.isCached(page)) this.#numFreeCached++;
    this.#listener.onFree?.(page);
  }

  /** The free pages in the order in which they will be allocated. */
  *freePages(): Generator<number> {
    for (let page = this.#next[this.numPages]; page !== this.numPages; page = this.#next[page]) yield page;
  }

  #unlink(page: number): void {
    this.#next[this.#previous[page]] = this.#next[page];
    this.#previous[this.#next[page]] = this.#previous[page];
    this.#numFree--;
  }

  #append(page: number): void {
    const end = this.numPages;
    const last = this.#previous[end];
    this.#next[last] = page;
    this.#previous[page] = last;
    this.#next[page] = end;
    this.#previous[end] = page;
    this.#numFree++;
  }
}
