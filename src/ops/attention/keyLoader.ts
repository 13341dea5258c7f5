/**
 * Kernel part: finds the keys and values of one block in their pages. f32 pages are read in place; other storage types are converted to
 * f32 in scratch memory. A new storage type is a new entry of `decoders`. What is computed with the rows is in registerTiles.ts.
 */
import { bf16ToF32, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import type { AttentionSpec, PageStorage } from "./contract.ts";
import { keyBlock } from "./plan.ts";

type Address = Value<"i32">;

/** Page addressing parameters of the kernel, in bytes. */
export interface PageParams {
  readonly kPages: Address;
  readonly vPages: Address;
  readonly kPageBytes: Address;
  readonly kSlotBytes: Address;
  readonly vPageBytes: Address;
  readonly vSlotBytes: Address;
}

interface Decoder {
  readonly elementBytes: number;
  /** The next register of elements as f32. */
  decode(k: KernelBuilder, address: Address): Value<"f32v">;
}

const decoders: Readonly<Record<Exclude<PageStorage, "f32">, Decoder>> = {
  f16: { elementBytes: 2, decode: (k, address) => f16ToF32(k, k.load("u16 to i32v", address)) },
  bf16: { elementBytes: 2, decode: (k, address) => bf16ToF32(k.load("u16 to i32v", address)) },
};

export function storageBytes(storage: PageStorage): number {
  return storage === "f32" ? 4 : decoders[storage].elementBytes;
}

/** Scratch that the loader needs for converted rows. */
export function loaderBytes({ storage, headDim }: AttentionSpec): number {
  return storage === "f32" ? 0 : 2 * keyBlock * headDim * 4;
}

/** Where the rows of a block are: tables of keyBlock addresses each, and room for converted rows (loaderBytes). */
export interface BlockRows {
  readonly keyTable: Address;
  readonly valueTable: Address;
  readonly converted: Address;
}

/**
 * Fills the tables with the addresses of the f32 rows of keys `begin` up to `end` of a block (0 <= begin < end <= keyBlock, counted
 * from the block's first position `blockStart`). Up to the surrounding multiples of 4 the entries repeat a valid row, so that
 * register tiles need no remainder; nothing outside [begin, end) is ever read from the pages.
 */
export function loadBlock(
  k: KernelBuilder,
  spec: AttentionSpec,
  pages: PageParams,
  blockTable: Address,
  rows: BlockRows,
  blockStart: Value<"i32">,
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const { pageSize } = spec;
  const at = k.var("i32", begin);
  k.while(at.value.lt(end), () => {
    const position = k.let(blockStart.add(at.value));
    const pageIndex = k.let(position.divU(pageSize));
    const slot = k.let(position.sub(pageIndex.mul(pageSize)));
    const page = k.let(k.load("i32", blockTable.add(pageIndex.shl(2))));
    const left = k.let(end.sub(at.value));
    const inPage = k.let(k.i32(pageSize).sub(slot));
    const run = k.let(k.select(inPage.lt(left), inPage, left));
    const key = k.let(pages.kPages.add(page.mul(pages.kPageBytes)).add(slot.mul(pages.kSlotBytes)));
    const value = k.let(pages.vPages.add(page.mul(pages.vPageBytes)).add(slot.mul(pages.vSlotBytes)));
    k.for(0, run, 1, (i) => {
      const j = k.let(at.value.add(i));
      placeRow(k, spec, rows.keyTable, j, key.add(i.mul(pages.kSlotBytes)), rows.converted);
      const convertedValues = rows.converted.add(keyBlock * spec.headDim * 4);
      placeRow(k, spec, rows.valueTable, j, value.add(i.mul(pages.vSlotBytes)), convertedValues);
    });
    at.set(at.value.add(run));
  });
  for (const table of [rows.keyTable, rows.valueTable]) {
    const first = k.let(k.load("i32", table.add(begin.shl(2))));
    k.for(begin.and(-4), begin, 1, (j) => k.store("i32", table.add(j.shl(2)), first));
    k.for(end, end.add(3).and(-4), 1, (j) => k.store("i32", table.add(j.shl(2)), first));
  }
}

/** Enters row j of the block into a table: its own address, or that of its converted copy. */
function placeRow(
  k: KernelBuilder,
  { storage, headDim }: AttentionSpec,
  table: Address,
  j: Value<"i32">,
  source: Address,
  converted: Address,
): void {
  if (storage === "f32") {
    k.store("i32", table.add(j.shl(2)), source);
    return;
  }
  const { elementBytes, decode } = decoders[storage];
  const from = k.let(source);
  const to = k.let(converted.add(j.mul(headDim * 4)));
  k.store("i32", table.add(j.shl(2)), to);
  k.for(0, headDim, k.lanes, (d) => {
    k.store("f32v", to.add(d.shl(2)), decode(k, from.add(d.mul(elementBytes))));
  });
}
