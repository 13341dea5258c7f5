/**
 * Where the rows of a pool of pages lie in memory, and how far apart: for the operations that write rows by slot. What a row holds is in
 * attention/storage.ts.
 */
import { ArgumentError } from "../../tensor/index.ts";
import {
  type PageStorage,
  type PageStrides,
  rowElements,
  rowScales,
  storageBytes,
  validateStorage,
} from "../attention/storage.ts";
import { checkPositive } from "../elementwise/rows.ts";

/** Distances between pages, the slots of a page, and the heads of a slot. Units of `storageBytes` for rows, f32 for scales. */
interface Strides {
  readonly pageStride?: number;
  readonly slotStride?: number;
  readonly headStride?: number;
}

/**
 * Pages of one layer's keys or values: slot s is in page floor(s / pageSize) at offset s mod pageSize, and its row of head h begins at unit
 * page * pageStride + offset * slotStride + h * headStride. Contiguous pages [page][slot][kv head][row] need no strides; a cache with keys
 * and values in turn ([page][slot][2 * kv head][head dim], K at 2h, V at 2h + 1) is slotStride = 2 * numKvHeads * headDim, headStride = 2 *
 * headDim; pages [page][kv head][slot][row] are pageSize, slotStride = row and headStride = pageSize * row.
 */
export interface KvPages extends Strides {
  /** Byte offset in the device's memory, aligned to the unit. */
  readonly pointer: number;
  readonly type: PageStorage;
  readonly numSlots: number;
  /** Tokens of a page. Absent where all slots are slotStride apart. */
  readonly pageSize?: number;
  /** Needed for a storage that has scales: an array of their own, or places inside of the rows. */
  readonly scales?: ScalePages;
}

/** The scales of a row, `rowScales` f32; contiguous [page][slot][kv head][scales] without strides. */
export interface ScalePages extends Strides {
  /** Byte offset in the device's memory, a multiple of 4. */
  readonly pointer: number;
}

/** What pages hold in each slot. */
export interface SlotRows {
  readonly storage: PageStorage;
  readonly numHeads: number;
  /** Units (of `storageBytes`) and scales of a head's row. */
  readonly units: number;
  readonly scales: number;
}

/** Slots that hold a row of so many channels for each head. */
export function headRows(storage: PageStorage, numHeads: number, channels: number): SlotRows {
  return { storage, numHeads, units: rowElements(storage, channels), scales: rowScales(storage, channels) };
}

/** Distances in bytes. */
export interface ByteStrides {
  readonly pointer: number;
  readonly pageBytes: number;
  readonly slotBytes: number;
  readonly headBytes: number;
}

/** Pages that passed their check. */
export interface CheckedPages extends ByteStrides {
  readonly numSlots: number;
  readonly pageSize: number;
  /** All 0 where the storage has no scales. */
  readonly scales: ByteStrides;
}

/** Throws ArgumentError naming the field of `argument` that does not fit its rows. */
export function checkPages(argument: string, rows: SlotRows, pages: KvPages): CheckedPages {
  const { storage, numHeads, units } = rows;
  validateStorage(`${argument}.type`, pages.type);
  if (!sameStorage(pages.type, storage)) {
    throw new ArgumentError(`${argument} must be of type ${storageName(storage)}, got ${storageName(pages.type)}`);
  }
  checkPositive(`${argument}.numSlots`, pages.numSlots);
  const { numSlots, pageSize = 1 } = pages;
  checkPositive(`${argument}.pageSize`, pageSize);
  if (numSlots % pageSize !== 0) {
    throw new ArgumentError(`${argument}.numSlots must be a multiple of pageSize = ${pageSize}, got ${numSlots}`);
  }
  const hasPages = pages.pageSize !== undefined;
  const extents = { numPages: numSlots / pageSize, pageSize, numHeads, hasPages };
  const found = byteStrides(argument, pages, extents, units, storageBytes(storage));
  if (rows.scales === 0) {
    if (pages.scales) throw new ArgumentError(`${argument}.scales must be absent: ${storageName(storage)} has none`);
    return { ...found, numSlots, pageSize, scales: noPages.scales };
  }
  if (!pages.scales) {
    throw new ArgumentError(
      `${argument}.scales must be given: ${storageName(storage)} has ${rows.scales} for each row`,
    );
  }
  return {
    ...found,
    numSlots,
    pageSize,
    scales: byteStrides(`${argument}.scales`, pages.scales, extents, rows.scales, 4),
  };
}

/** Pages that nothing is written to. */
export const noPages: CheckedPages = {
  pointer: 0,
  pageBytes: 0,
  slotBytes: 0,
  headBytes: 0,
  numSlots: 0,
  pageSize: 1,
  scales: { pointer: 0, pageBytes: 0, slotBytes: 0, headBytes: 0 },
};

interface Extents {
  readonly numPages: number;
  readonly pageSize: number;
  readonly numHeads: number;
  readonly hasPages: boolean;
}

function byteStrides(
  argument: string,
  given: Strides & { readonly pointer: number },
  { numPages, pageSize, numHeads, hasPages }: Extents,
  rowLength: number,
  unitBytes: number,
): ByteStrides {
  if (!Number.isInteger(given.pointer) || given.pointer < 0 || given.pointer % unitBytes !== 0) {
    throw new ArgumentError(`${argument}.pointer must be a multiple of ${unitBytes}, got ${given.pointer}`);
  }
  const headStride = given.headStride ?? rowLength;
  const slotStride = given.slotStride ?? numHeads * headStride;
  // Without a page size each slot is a page.
  const pageStride = hasPages
    ? (given.pageStride ?? Math.max(pageSize * slotStride, numHeads * headStride))
    : slotStride;
  // Of nested dimensions each steps over all of those inside: that no two rows share memory follows.
  const dimensions = [
    { name: "headStride", stride: headStride, extent: numHeads },
    { name: "slotStride", stride: slotStride, extent: pageSize },
    { name: hasPages ? "pageStride" : "slotStride", stride: pageStride, extent: numPages },
  ].sort((a, b) => a.stride - b.stride);
  let occupied = rowLength;
  for (const { name, stride, extent } of dimensions) {
    if (!Number.isInteger(stride) || (extent > 1 && stride < occupied)) {
      throw new ArgumentError(
        `${argument}.${name} must be at least ${occupied}, the units that it steps over, got ${stride}`,
      );
    }
    occupied += (extent - 1) * stride;
  }
  return {
    pointer: given.pointer,
    pageBytes: pageStride * unitBytes,
    slotBytes: slotStride * unitBytes,
    headBytes: headStride * unitBytes,
  };
}

function sameStorage(a: PageStorage, b: PageStorage): boolean {
  return storageName(a) === storageName(b);
}

/** A storage in words: `f16`, or `4 bits in groups of 32`. */
export function storageName(storage: PageStorage): string {
  if (typeof storage === "string") return storage;
  if (storage.kind === "tiled") return `e4m3 in tiles of ${storage.tile}`;
  return `${storage.bits} bits in groups of ${storage.groupSize || "a row"}`;
}

/** What attention is told of pages: where they and their scales begin, and their strides in its units. */
export interface AttentionPages {
  readonly pages: number;
  readonly strides: PageStrides;
  readonly scales?: number;
  readonly scaleStrides?: PageStrides;
}

/** The same pages as an append is given them, in the words of `AttentionArgs`. Throws ArgumentError as `checkPages` does. */
export function attentionPages(rows: SlotRows, pages: KvPages): AttentionPages {
  const checked = checkPages("pages", rows, pages);
  const strides = ({ pageBytes, slotBytes, headBytes }: ByteStrides, unit: number): PageStrides => ({
    page: pageBytes / unit,
    slot: slotBytes / unit,
    head: headBytes / unit,
  });
  return {
    pages: checked.pointer,
    strides: strides(checked, storageBytes(rows.storage)),
    ...(rows.scales > 0 && { scales: checked.scales.pointer, scaleStrides: strides(checked.scales, 4) }),
  };
}

/**
 * Checks the first `numTokens` slots on the host, once a step rather than once a layer: each is -1 or below `numSlots`, and no two are the same.
 * Throws ArgumentError naming the entry. The kernels skip any other value too, so that a wrong one cannot reach foreign memory.
 */
export function checkSlotMapping(slotMapping: ArrayLike<number>, numTokens: number, numSlots: number): void {
  const writers = new Map<number, number>();
  for (let token = 0; token < numTokens; token++) {
    const slot = slotMapping[token];
    if (slot === -1) continue;
    if (!Number.isInteger(slot) || slot < 0 || slot >= numSlots) {
      throw new ArgumentError(
        `slotMapping[${token}] = ${slot} is not a slot: the pool has ${numSlots} (-1 writes nothing)`,
      );
    }
    const other = writers.get(slot);
    if (other !== undefined) {
      throw new ArgumentError(`slotMapping[${token}] = ${slot} is the slot of token ${other} too`);
    }
    writers.set(slot, token);
  }
}
