/**
 * Kernel part: brings the keys and values of one block out of their pages into scratch memory, as f32 rows side by side. Copying pays even
 * for f32 pages and few query rows: pages are read from beginning to end, and register tiles step through the rows with
 * constant offsets. A new storage type is a new entry of `decoders`. What is computed with the rows is in registerTiles.ts.
 */
import { bf16ToF32, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import type { AttentionSpec } from "./contract.ts";
import { keyBlock } from "./plan.ts";
import { rowPitch } from "./registerTiles.ts";
import type { ElementStorage } from "./storage.ts";

type Address = Value<"i32">;

/** Where the keys, or the values, of one head are: address of the first page, and distances in bytes. */
export interface PageParams {
  readonly pages: Address;
  readonly pageBytes: Value<"i32">;
  readonly slotBytes: Value<"i32">;
}

interface Decoder {
  readonly elementBytes: number;
  /** The function that writes one row of `count` elements as f32; its constants are set up outside of all loops. */
  rowDecoder(k: KernelBuilder, count: number): (from: Address, to: Address) => void;
}

const decoders: Readonly<Record<ElementStorage, Decoder>> = {
  f32: { elementBytes: 4, rowDecoder: copyF32 },
  f16: { elementBytes: 2, rowDecoder: decodeF16 },
  bf16: { elementBytes: 2, rowDecoder: decodeBf16 },
  f8e4m3: { elementBytes: 1, rowDecoder: (k, count) => decodeBytes(k, count, (byte) => e4m3ToF32(k, byte)) },
  f8e5m2: { elementBytes: 1, rowDecoder: (k, count) => decodeBytes(k, count, (byte) => f16ToF32(k, byte.shl(8))) },
};

function copyF32(k: KernelBuilder, count: number): (from: Address, to: Address) => void {
  return (from, to) =>
    forRegisters(k, count, 1, (d, step) => {
      const offset = step * k.lanes * 4;
      k.store("f32v", k.let(to.add(d.shl(2))), k.load("f32v", k.let(from.add(d.shl(2))), offset), offset);
    });
}

function decodeBf16(k: KernelBuilder, count: number): (from: Address, to: Address) => void {
  return (from, to) =>
    forRegisters(k, count, 1, (d, step) => {
      const bits = k.load("u16 to i32v", k.let(from.add(d.shl(1))), step * k.lanes * 2);
      k.store("f32v", k.let(to.add(d.shl(2))), bf16ToF32(bits), step * k.lanes * 4);
    });
}

/**
 * Moved to the place of an f32's, the bits of a half are its value times 2^-112, subnormals included. Only infinities and NaN come out
 * wrong: a row that holds one is done again the long way.
 */
function decodeF16(k: KernelBuilder, count: number): (from: Address, to: Address) => void {
  const signAndBits = k.let(k.all("i32v", 0x8fffe000 | 0));
  const scale = k.let(k.all("f32v", 2 ** 112));
  const exponentMask = k.let(k.all("i32v", 0x7c007c00));
  const lowestExponentBit = k.let(k.all("i32v", 0x04000400));
  return (from, to) => {
    const carries = k.var("i32v", 0);
    forRegisters(k, count, 2, (d, step) => {
      const halves = k.let(k.load("i16v", k.let(from.add(d.shl(1))), step * k.lanes * 4));
      const out = k.let(to.add(d.shl(2)));
      for (const [i, wide] of [halves.widenLow(), halves.widenHigh()].entries()) {
        // Widening repeats the sign; all but its last copy and the moved bits are cleared.
        const moved = wide.shl(13).and(signAndBits);
        k.store("f32v", out, moved.as("f32v").mul(scale), (2 * step + i) * k.lanes * 4);
      }
      // The sum carries into the sign of exactly those halves whose exponent is all ones.
      carries.set(carries.value.or(halves.as("i32v").and(exponentMask).add(lowestExponentBit)));
    });
    k.if(carries.value.and(0x80008000 | 0).anyTrue(), () => {
      k.for(0, count, k.lanes, (d) => {
        k.store("f32v", to.add(d.shl(2)), f16ToF32(k, k.load("u16 to i32v", from.add(d.shl(1)))));
      });
    });
  };
}

/** Rows of one byte an element; `decode` gets the bytes 0..255 in each lane. */
function decodeBytes(
  k: KernelBuilder,
  count: number,
  decode: (bytes: Value<"i32v">) => Value<"f32v">,
): (from: Address, to: Address) => void {
  return (from, to) =>
    forRegisters(k, count, 2, (d, step) => {
      const bytes = k.let(k.load("i8 to i16v", k.let(from.add(d)), step * k.lanes * 2));
      const out = k.let(to.add(d.shl(2)));
      for (const [i, wide] of [bytes.widenLow(), bytes.widenHigh()].entries()) {
        k.store("f32v", out, decode(k.let(wide.and(0xff))), (2 * step + i) * k.lanes * 4);
      }
    });
}

/** The finite 8-bit float of 4 exponent bits: only 0x7f and 0xff are no numbers. */
function e4m3ToF32(k: KernelBuilder, byte: Value<"i32v">): Value<"f32v"> {
  const magnitude = k.let(byte.and(0x7f));
  const normal = magnitude.shl(20).add(120 << 23);
  const subnormal = magnitude
    .toF32()
    .mul(2 ** -9)
    .as("i32v");
  const number = k.let(k.select(magnitude.lt(8), subnormal, normal));
  const bits = k.let(k.select(magnitude.eq(0x7f), k.all("i32v", 0x7fc00000), number));
  return bits.or(byte.and(0x80).shl(24)).as("f32v");
}

/** A loop over `count` elements, `registers` registers a step, a few steps unrolled: `d` is the first element of the unrolled group. */
function forRegisters(
  k: KernelBuilder,
  count: number,
  registers: number,
  body: (d: Value<"i32">, step: number) => void,
): void {
  const elements = registers * k.lanes;
  const unroll = [4, 2].find((steps) => count % (steps * elements) === 0) ?? 1;
  k.for(0, count, unroll * elements, (d) => {
    for (let step = 0; step < unroll; step++) body(d, step);
  });
}

/** Scratch that the loader needs: one block of rows. */
export function loaderBytes({ headDim }: AttentionSpec): number {
  return keyBlock * rowPitch(headDim);
}

/**
 * Loads keys or values `begin` up to `end` of a block (0 <= begin < end <= keyBlock, counted from the block's first position
 * `blockStart`). Nothing outside of them is read from the pages. Up to the surrounding multiples of 4 the rows are set to zero, so that
 * register tiles need no remainder.
 */
export type LoadBlock = (
  from: PageParams,
  blockTable: Address,
  blockStart: Value<"i32">,
  begin: Value<"i32">,
  end: Value<"i32">,
) => void;

/**
 * Sets up a loader into `rows`, [keyBlock, headDim] f32, rows a rowPitch apart. To be called outside of all loops. Keys and values take
 * turns in the same memory, which then stays in the first-level cache.
 */
export function blockLoader(k: KernelBuilder, spec: AttentionSpec, rows: Address): LoadBlock {
  const { pageSize = 2 ** 30, headDim, storage } = spec;
  if (typeof storage !== "string" || storage === "i8")
    throw new Error(`no kernel reads ${JSON.stringify(storage)} pages yet`);
  const pitch = rowPitch(headDim);
  const decodeRow = decoders[storage].rowDecoder(k, headDim);
  return ({ pages, pageBytes, slotBytes }, blockTable, blockStart, begin, end) => {
    const at = k.var("i32", begin);
    k.while(at.value.lt(end), () => {
      const position = k.let(blockStart.add(at.value));
      const pageIndex = k.let(position.divU(pageSize));
      const slot = k.let(position.sub(pageIndex.mul(pageSize)));
      const page = k.let(k.load("i32", blockTable.add(pageIndex.shl(2))));
      const left = k.let(end.sub(at.value));
      const inPage = k.let(k.i32(pageSize).sub(slot));
      const run = k.let(k.select(inPage.lt(left), inPage, left));
      const from = k.let(pages.add(page.mul(pageBytes)).add(slot.mul(slotBytes)));
      const to = k.let(rows.add(at.value.mul(pitch)));
      k.for(0, run, 1, (i) => decodeRow(k.let(from.add(i.mul(slotBytes))), k.let(to.add(i.mul(pitch)))));
      at.set(at.value.add(run));
    });
    // What is left there could be a NaN, which a weight of 0 does not hide.
    for (const [first, last] of [
      [begin.and(-4), begin],
      [end, end.add(3).and(-4)],
    ]) {
      k.for(first.mul(pitch), last.mul(pitch), k.lanes * 4, (row) => k.store("f32v", rows.add(row), 0));
    }
  };
}
