/**
 * Finds full pages by content: the page's tokens, everything before them (through the parent page), a salt and the cache's layout.
 * Hash buckets over typed arrays; it knows nothing of who holds a page or when it is evicted.
 */

/** Hashes one page's tokens on top of its parent's hash; 32 bits. A poor one costs time, never a wrong answer. */
export type PageHash = (seed: number, tokens: Int32Array, begin: number, end: number) => number;

/** MurmurHash3's mixing (Appleby, public domain), a word at a time. */
export const murmurHash: PageHash = (seed, tokens, begin, end) => {
  let hash = seed | 0;
  for (let index = begin; index < end; index++) {
    let word = Math.imul(tokens[index], 0xcc9e2d51);
    word = Math.imul((word << 15) | (word >>> 17), 0x1b873593);
    hash ^= word;
    hash = (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
  }
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
};

/** Stands for "no page": the parent of a first page, and the answer when nothing is found. */
export const NO_PAGE = -1;

/**
 * The pages whose content can be found again. Contents may be there more than once: two sequences that compute the same page at the same
 * time both keep theirs, since block tables are append-only.
 */
export class PrefixIndex {
  readonly #pageSize: number;
  readonly #tokens: Int32Array;
  readonly #hash: PageHash;
  readonly #rootHash: number;
  readonly #buckets: Int32Array;
  /** Neighbours in a page's bucket; NO_PAGE at either end. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  readonly #hashes: Int32Array;
  /**
   * A number for the content of a page and all before it, 0 for pages that are not in the index. It is never used for another content,
   * which a page number would be: a child whose parent was evicted can therefore not be mistaken for a child of the parent's successor.
   */
  readonly #contents: Float64Array;
  readonly #parentContents: Float64Array;
  /** Of first pages only; the others have it through their parents. */
  readonly #salts: string[];
  #numContents = 0;

  /** `tokens`: [numPages, pageSize] the tokens in each page, written by the cache. */
  constructor(tokens: Int32Array, pageSize: number, layout: string, hash: PageHash = murmurHash) {
    const numPages = tokens.length / pageSize;
    this.#pageSize = pageSize;
    this.#tokens = tokens;
    this.#hash = hash;
    this.#rootHash = hashText(hash, pageSize, layout);
    this.#buckets = new Int32Array(2 ** Math.ceil(Math.log2(numPages + 1))).fill(NO_PAGE);
    this.#next = new Int32Array(numPages);
    this.#previous = new Int32Array(numPages);
    this.#hashes = new Int32Array(numPages);
    this.#contents = new Float64Array(numPages);
    this.#parentContents = new Float64Array(numPages);
    this.#salts = new Array<string>(numPages).fill("");
  }

  has(page: number): boolean {
    return this.#contents[page] !== 0;
  }

  /** The page that holds tokens[begin .. begin + pageSize - 1] after what `parent` (a page of the index, or NO_PAGE) ends with. */
  find(parent: number, tokens: Int32Array, begin: number, salt: string): number {
    return this.#find(this.#hashAfter(parent, tokens, begin, salt), parent, tokens, begin, salt);
  }

  /** Makes a full page findable; its parent must be. */
  add(page: number, parent: number, salt: string): void {
    const begin = page * this.#pageSize;
    const hash = this.#hashAfter(parent, this.#tokens, begin, salt);
    const twin = this.#find(hash, parent, this.#tokens, begin, salt);
    this.#hashes[page] = hash;
    this.#contents[page] = twin === NO_PAGE ? ++this.#numContents : this.#contents[twin];
    this.#parentContents[page] = parent === NO_PAGE ? 0 : this.#contents[parent];
    this.#salts[page] = parent === NO_PAGE ? salt : "";

    const bucket = this.#bucket(hash);
    const first = this.#buckets[bucket];
    this.#next[page] = first;
    this.#previous[page] = NO_PAGE;
    if (first !== NO_PAGE) this.#previous[first] = page;
    this.#buckets[bucket] = page;
  }

  remove(page: number): void {
    const next = this.#next[page];
    const previous = this.#previous[page];
    if (previous === NO_PAGE) this.#buckets[this.#bucket(this.#hashes[page])] = next;
    else this.#next[previous] = next;
    if (next !== NO_PAGE) this.#previous[next] = previous;
    this.#contents[page] = 0;
    this.#salts[page] = "";
  }

  #find(hash: number, parent: number, tokens: Int32Array, begin: number, salt: string): number {
    const parentContent = parent === NO_PAGE ? 0 : this.#contents[parent];
    for (let page = this.#buckets[this.#bucket(hash)]; page !== NO_PAGE; page = this.#next[page]) {
      if (this.#hashes[page] !== hash || this.#parentContents[page] !== parentContent) continue;
      if (parent === NO_PAGE && this.#salts[page] !== salt) continue;
      if (this.#hasTokens(page, tokens, begin)) return page;
    }
    return NO_PAGE;
  }

  #hashAfter(parent: number, tokens: Int32Array, begin: number, salt: string): number {
    const seed = parent === NO_PAGE ? hashText(this.#hash, this.#rootHash, salt) : this.#hashes[parent];
    return this.#hash(seed, tokens, begin, begin + this.#pageSize);
  }

  #hasTokens(page: number, tokens: Int32Array, begin: number): boolean {
    const at = page * this.#pageSize;
    for (let offset = 0; offset < this.#pageSize; offset++) {
      if (this.#tokens[at + offset] !== tokens[begin + offset]) return false;
    }
    return true;
  }

  #bucket(hash: number): number {
    return hash & (this.#buckets.length - 1);
  }
}

function hashText(hash: PageHash, seed: number, text: string): number {
  const units = Int32Array.from(text, (character) => character.codePointAt(0) ?? 0);
  return hash(seed, units, 0, units.length);
}
