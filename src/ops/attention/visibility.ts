/**
 * Kernel part: which keys of a block the tokens of a tile see: causal masks, windows and the bits of custom masks. What becomes of hidden
 * keys is in onlineSoftmax.ts.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import type { AttentionSpec } from "./contract.ts";
import type { KeyMask } from "./onlineSoftmax.ts";
import { keyBlock } from "./plan.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** What the tokens of a tile see of one block, but for a custom mask: the first key that is worth loading, and the mask of each token. */
export function blockVisibility(
  k: KernelBuilder,
  { causal, slidingWindow, customMask, maskValue }: AttentionSpec,
  {
    blockStart,
    left,
    end,
    position,
    tokens,
  }: { readonly blockStart: Int; readonly left: Int; readonly end: Int; readonly position: Int; readonly tokens: Int },
): { readonly begin: Int; maskOf(token: Int): KeyMask } {
  // The first row of the tile sees the earliest keys.
  const first = slidingWindow === undefined ? k.i32(0) : k.let(position.add(1 - slidingWindow).sub(blockStart));
  const skips = slidingWindow !== undefined && maskValue === undefined;
  const begin = skips ? k.let(k.select(first.gt(0), first, 0)) : k.i32(0);
  let isMasked: Int = left.lt(keyBlock);
  if (causal) isMasked = isMasked.or(blockStart.add(keyBlock - 1).gt(position));
  if (slidingWindow !== undefined) isMasked = isMasked.or(first.add(tokens).gt(1));
  const needed = customMask ? k.i32(1) : k.let(isMasked);
  // Finite as a score too, so that a row of which every key is hidden is their average.
  const amount = maskValue === undefined ? 0 : Math.max(maskValue * Math.LOG2E, -3e38);
  return {
    begin,
    maskOf(token) {
      const seen = k.let(position.add(token).add(1).sub(blockStart));
      return {
        needed,
        begin: slidingWindow === undefined ? k.i32(0) : k.let(seen.sub(slidingWindow)),
        end: causal ? k.let(k.select(seen.lt(end), seen, end)) : end,
        ...(maskValue === undefined ? {} : { bias: { amount, numKeys: end } }),
      };
    },
  };
}

/**
 * The mask of 32 keys from `blockStart` on for one query row: the bits (row - firstRow) * kvLen + key of the sequence's mask, which begin
 * anywhere in a byte.
 */
export function maskBits(
  k: KernelBuilder,
  { masks, kvLen, firstRow }: { readonly masks: Address; readonly kvLen: Int; readonly firstRow: Int },
  queryRow: Int,
  blockStart: Int,
): Int {
  const row = k.let(queryRow.sub(firstRow));
  // Byte and bit apart: a sequence may have more than 2^31 bits.
  const rowByte = row.shrU(3).mul(kvLen);
  const bit = k.let(row.and(7).mul(kvLen).add(blockStart));
  const address = k.let(masks.add(rowByte).add(bit.shrU(3)));
  const shift = k.let(bit.and(7));
  const low = k.load("i32", address).shrU(shift);
  // Shifted twice, as a shift by 32 would be one by 0.
  const high = k.load("u8", address, 4).shl(k.i32(31).sub(shift)).shl(1);
  return k.let(low.or(high));
}
