/**
 * What the cache knows of one sequence. Plain state: `KvCache` alone changes it, everybody else reads.
 */

import { BlockTable } from "./blockTable.ts";

/** One sequence's pages and lengths, made by `KvCache.add`, `create` or `fork`. */
export class CacheSequence {
  readonly table = new BlockTable();
  readonly salt: string;
  /** Tokens that have a slot. */
  numTokens = 0;
  /** Tokens in pages that can be found by content: a multiple of the page size. */
  numCommittedTokens = 0;
  isFreed = false;

  constructor(salt: string) {
    this.salt = salt;
  }
}
