/** The paged key/value cache's bookkeeping: pools, block tables, prefix hashes. Bytes and devices are left to others. */

export { BlockTable } from "./blockTable.ts";
export { CacheSequence } from "./cacheSequence.ts";
export { KvCache, type KvCacheOptions, type KvCacheStats, type PageCopy } from "./kvCache.ts";
export { type PageListener, PagePool } from "./pagePool.ts";
export { murmurHash, NO_PAGE, type PageHash, PrefixIndex } from "./prefixIndex.ts";
