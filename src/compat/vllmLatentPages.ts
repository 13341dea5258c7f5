/**
 * Palu latents between vLLM's cache layout and Kvasir's. vLLM keeps keys [blocks, kv heads, rank / x, block size, x] with x = 16 bytes of
 * elements, and values [blocks, kv heads, rank, block size]; Kvasir keeps both [blocks, block size, kv heads, rank].
 *
 * They are converted and not read in place: vLLM's order exists for one GPU thread to own one key, it takes ranks that are multiples of x
 * only, and a token's values lie a block apart from each other. A conversion costs one pass when a cache moves; reading in that order would
 * cost every step, and could not hold half of the ranks.
 */
import { ArgumentError, ShapeError } from "../tensor/index.ts";

/** Elements of a cache, whatever their type: bits are moved and never looked at. */
export type CacheElements = Float32Array | Uint16Array | Uint8Array;

export interface LatentBlocks {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly numKvHeads: number;
  /** Elements of one head's latent. */
  readonly rank: number;
}

/**
 * Keys from [blocks, kv heads, rank / x, block size, x] to [blocks, block size, kv heads, rank]. Throws ArgumentError for a rank that x
 * does not divide.
 */
export function keyPagesFromVllm<T extends CacheElements>(cache: T, blocks: LatentBlocks): T {
  const place = keyPlace(cache, blocks);
  return rearranged(cache, blocks, (index) => ({ from: place(index), to: nativePlace(blocks, index) }));
}

/** The inverse of `keyPagesFromVllm`. */
export function keyPagesToVllm<T extends CacheElements>(pages: T, blocks: LatentBlocks): T {
  const place = keyPlace(pages, blocks);
  return rearranged(pages, blocks, (index) => ({ from: nativePlace(blocks, index), to: place(index) }));
}

/** Values from [blocks, kv heads, rank, block size] to [blocks, block size, kv heads, rank]. */
export function valuePagesFromVllm<T extends CacheElements>(cache: T, blocks: LatentBlocks): T {
  return rearranged(cache, blocks, (index) => ({ from: valuePlace(blocks, index), to: nativePlace(blocks, index) }));
}

/** The inverse of `valuePagesFromVllm`. */
export function valuePagesToVllm<T extends CacheElements>(pages: T, blocks: LatentBlocks): T {
  return rearranged(pages, blocks, (index) => ({ from: nativePlace(blocks, index), to: valuePlace(blocks, index) }));
}

/** One element of a cache: channel `c` of token `t` of a block. */
interface Index {
  readonly block: number;
  readonly t: number;
  readonly head: number;
  readonly c: number;
}

function nativePlace({ blockSize, numKvHeads, rank }: LatentBlocks, { block, t, head, c }: Index): number {
  return ((block * blockSize + t) * numKvHeads + head) * rank + c;
}

function valuePlace({ blockSize, numKvHeads, rank }: LatentBlocks, { block, t, head, c }: Index): number {
  return ((block * numKvHeads + head) * rank + c) * blockSize + t;
}

function keyPlace({ BYTES_PER_ELEMENT }: CacheElements, blocks: LatentBlocks): (index: Index) => number {
  const { blockSize, numKvHeads, rank } = blocks;
  const x = 16 / BYTES_PER_ELEMENT;
  if (rank % x !== 0) {
    throw new ArgumentError(
      `rank = ${rank} must be a multiple of x = ${x}: vLLM's key layout cannot hold others with ${BYTES_PER_ELEMENT}-byte elements`,
    );
  }
  return ({ block, t, head, c }) =>
    (((block * numKvHeads + head) * (rank / x) + Math.floor(c / x)) * blockSize + t) * x + (c % x);
}

function rearranged<T extends CacheElements>(
  source: T,
  blocks: LatentBlocks,
  place: (index: Index) => { readonly from: number; readonly to: number },
): T {
  const { numBlocks, blockSize, numKvHeads, rank } = blocks;
  const length = numBlocks * blockSize * numKvHeads * rank;
  if (source.length !== length) {
    throw new ShapeError(
      `the cache must have ${numBlocks} blocks * ${blockSize} * ${numKvHeads} * ${rank} = ${length} elements, got ${source.length}`,
    );
  }
  const target = source.slice() as T; // slice keeps the type of its array
  for (let block = 0; block < numBlocks; block++) {
    for (let t = 0; t < blockSize; t++) {
      for (let head = 0; head < numKvHeads; head++) {
        for (let c = 0; c < rank; c++) {
          const { from, to } = place({ block, t, head, c });
          target[to] = source[from];
        }
      }
    }
  }
  return target;
}
