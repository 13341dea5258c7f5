/**
 * Kernel part: brings the rows of one block of keys or values out of their pages into scratch memory, as f32 rows side by side. Copying pays
 * even for f32 pages and few query rows: pages are read from beginning to end, and register tiles step through the rows with
 * constant offsets. What a row of each storage type means is in rowDecoders.ts, what is computed with the rows in registerTiles.ts.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { type Extent, zeroRow } from "./dims.ts";
import { rowPitch } from "./registerTiles.ts";
import { type DecodeRow, rowDecoder } from "./rowDecoders.ts";
import type { PageStorage } from "./storage.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Tokens of a "page" where a sequence's rows lie one after the other: all of them. */
export const contiguousTokens = 2 ** 30;

/** Where the rows of one head are: addresses in the first page, and distances in bytes. */
export interface RowSource {
  readonly pages: Address;
  readonly pageBytes: Int;
  readonly slotBytes: Int;
  /** The same for the scales of rows; anything where the storage has none. */
  readonly scales: Address;
  readonly scalePageBytes: Int;
  readonly scaleSlotBytes: Int;
}

/** The tokens from `start` on lie in a ring of `capacity` rows instead: token t at t % capacity. */
export interface RecentSource {
  readonly start: Int;
  readonly rows: Address;
  readonly slotBytes: Int;
  readonly capacity: Int;
}

/** Rows `begin` up to `end` of the block at position `blockStart` of a sequence (0 <= begin < end <= 32). */
export interface BlockRange {
  /** First page id of the sequence; for contiguous rows its first row. */
  readonly blockTable: Address;
  readonly blockStart: Int;
  readonly begin: Int;
  readonly end: Int;
}

/**
 * Loads the rows of a range. Nothing outside of it is read from the pages. Up to the surrounding multiples of 4 the rows are set to
 * zero, so that register tiles need no remainder.
 */
export type LoadBlock = (range: BlockRange, source: RowSource, count: Extent, recent?: RecentSource) => void;

/**
 * Sets up a loader into `rows`, [32, channels] f32, rows a rowPitch(maxChannels) apart. To be called outside of all loops.
 */
export function blockLoader(
  k: KernelBuilder,
  from: { readonly pageSize?: number; readonly storage: PageStorage; readonly recent?: PageStorage },
  rows: Address,
  maxChannels: number,
): LoadBlock {
  const { pageSize = contiguousTokens } = from;
  const pitch = rowPitch(maxChannels);
  const decodeRow = rowDecoder(k, from.storage);
  const decodeRecent = from.recent && rowDecoder(k, from.recent);
  return (range, source, count, recent) => {
    const { blockTable, blockStart, begin, end } = range;
    const at = k.var("i32", begin);
    /** Rows of one page or window from `slot` on, as many as there are up to `limit`. */
    const run = (
      decode: DecodeRow,
      limit: Int,
      place: { address: Address; step: Int; scales: Address; scaleStep: Int },
    ) => {
      const to = k.let(rows.add(at.value.mul(pitch)));
      k.for(0, limit, 1, (i) => {
        const scales = k.let(place.scales.add(i.mul(place.scaleStep)));
        decode({ from: k.let(place.address.add(i.mul(place.step))), scales, to: k.let(to.add(i.mul(pitch))) }, count);
      });
      at.set(at.value.add(limit));
    };
    const fromPage = (position: Int, left: Int): void => {
      const pageIndex = k.let(position.divU(pageSize));
      const slot = k.let(position.sub(pageIndex.mul(pageSize)));
      const page = k.let(k.load("i32", blockTable.add(pageIndex.shl(2))));
      const inPage = k.let(k.i32(pageSize).sub(slot));
      run(decodeRow, k.let(k.select(inPage.lt(left), inPage, left)), {
        address: k.let(source.pages.add(page.mul(source.pageBytes)).add(slot.mul(source.slotBytes))),
        step: source.slotBytes,
        scales: k.let(source.scales.add(page.mul(source.scalePageBytes)).add(slot.mul(source.scaleSlotBytes))),
        scaleStep: source.scaleSlotBytes,
      });
    };
    const fromWindow = (position: Int, { rows, slotBytes, capacity }: RecentSource, decode: DecodeRow): void => {
      const slot = k.let(position.rem(capacity));
      const [left, inWindow] = [k.let(end.sub(at.value)), k.let(capacity.sub(slot))];
      run(decode, k.let(k.select(inWindow.lt(left), inWindow, left)), {
        address: k.let(rows.add(slot.mul(slotBytes))),
        step: slotBytes,
        scales: rows,
        scaleStep: k.i32(0),
      });
    };
    k.while(at.value.lt(end), () => {
      const position = k.let(blockStart.add(at.value));
      const left = k.let(end.sub(at.value));
      if (!recent || !decodeRecent) return fromPage(position, left);
      k.if(
        position.lt(recent.start),
        () => {
          const stored = k.let(recent.start.sub(position));
          fromPage(position, k.let(k.select(stored.lt(left), stored, left)));
        },
        () => fromWindow(position, recent, decodeRecent),
      );
    });
    // What is left there could be a NaN, which a weight of 0 does not hide.
    for (const [first, last] of [
      [begin.and(-4), begin],
      [end, end.add(3).and(-4)],
    ]) {
      k.for(first.mul(pitch), last.mul(pitch), pitch, (row) => zeroRow(k, k.let(rows.add(row)), count));
    }
  };
}
