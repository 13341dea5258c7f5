/**
 * Kernel part: writes rows of f32 numbers as a storage type holds them, codes and scales, with exactly the bits of
 * attention/storageCodec.ts (whose comment has the formulas). Which rows go where is for the kernels that use it.
 */
import {
  f32ToBf16,
  f32ToE4m3,
  f32ToE5m2,
  f32ToF16,
  type KernelBuilder,
  type Operand,
  type Value,
} from "../../kernels/index.ts";
import { type EncodeOptions, smallestRange, validateEncoding } from "../attention/groupedCodec.ts";
import type { ElementStorage, GroupedStorage, PageStorage, TiledStorage } from "../attention/storage.ts";
import { type Address, type Block, forBlocks, largestMagnitude, type RowSource, rangeOf } from "./rowBlocks.ts";

/** How rows are stored. */
export interface RowEncoding extends EncodeOptions {
  readonly storage: PageStorage;
}

/** Writes the row at `from` to `to`, and its scales (where the storage has some) to `scales`. */
export type EncodeRow = (from: Address, to: Address, scales: Address) => void;

/** Where f16 pages saturate. */
const LARGEST_F16 = 65504;

/**
 * An encoder of rows of `count` numbers. To be made outside of loops; a `count` that is a value must be at least 1. Throws ArgumentError for
 * options that are out of range.
 */
export function rowEncoder(
  k: KernelBuilder,
  { storage, ...options }: RowEncoding,
  count: Operand<"i32">,
  source: RowSource,
): EncodeRow {
  validateEncoding(options);
  if (typeof storage === "string") {
    return storage === "i8" ? encodeInt8(k, count, source) : encodeElements(k, storage, count, source);
  }
  return storage.kind === "tiled"
    ? encodeTiled(k, storage, count, source)
    : encodeGrouped(k, storage, options, count, source);
}

function encodeElements(
  k: KernelBuilder,
  storage: ElementStorage,
  count: Operand<"i32">,
  source: RowSource,
): EncodeRow {
  switch (storage) {
    case "f32":
      return (from, to) =>
        forBlocks(k, source, { registers: 2, bits: 32, together: 1 }, count, from, to, (block) => {
          for (const r of [0, 1]) k.store("f32v", block.to, block.load(r), r * k.lanes * 4);
        });
    case "f16":
      return encodeHalves(k, count, source, (x) => f32ToF16(k, k.let(x.max(-LARGEST_F16).min(LARGEST_F16))));
    case "bf16":
      return encodeHalves(k, count, source, (x) => f32ToBf16(k, k.let(x)));
    case "f8e4m3":
      return (from, to) => encodeBytes(k, count, source, from, to, (x) => f32ToE4m3(k, x));
    case "f8e5m2":
      return (from, to) => encodeBytes(k, count, source, from, to, (x) => f32ToE5m2(k, x));
  }
}

function encodeHalves(
  k: KernelBuilder,
  count: Operand<"i32">,
  source: RowSource,
  convert: (x: Value<"f32v">) => Value<"i32v">,
): EncodeRow {
  return (from, to) =>
    forBlocks(k, source, { registers: 2, bits: 16, together: 1 }, count, from, to, (block) => {
      for (const r of [0, 1]) k.store("i32v to u16", block.to, convert(block.load(r)), r * k.lanes * 2);
    });
}

/** Rows of one byte a number; `convert` gives the byte, of which the lowest 8 bits are kept. */
function encodeBytes(
  k: KernelBuilder,
  count: Operand<"i32">,
  source: RowSource,
  from: Address,
  to: Address,
  convert: (x: Value<"f32v">) => Value<"i32v">,
  together = 1,
): void {
  forBlocks(k, source, { registers: 4, bits: 8, together }, count, from, to, (block) => {
    // Narrowing saturates signed numbers: with their sign repeated, all bytes pass.
    const signed = [0, 1, 2, 3].map((r) =>
      masked(k, block, r, convert(k.let(block.load(r))))
        .shl(24)
        .shr(24),
    );
    k.store("i8v", block.to, signed[0].narrow(signed[1]).narrow(signed[2].narrow(signed[3])));
  });
}

function encodeInt8(k: KernelBuilder, count: Operand<"i32">, source: RowSource): EncodeRow {
  return (from, to, scales) => {
    const largest = largestMagnitude(k, source, count, from);
    k.store("i32", scales, largest);
    const factor = k.let(k.splat(k.f32(127.5).div(largest.asF32())));
    // In a row of zeros the factor is infinite and a code NaN, which becomes 0.
    encodeBytes(k, count, source, from, to, (x) =>
      x.mul(factor).nearest().truncate().max(k.all("i32v", -128)).min(127),
    );
  };
}

function encodeTiled(k: KernelBuilder, { tile }: TiledStorage, count: Operand<"i32">, source: RowSource): EncodeRow {
  return (from, to, scales) =>
    forGroups(k, tile, count, (first, numbers, group) => {
      const at = k.let(from.add(first.shl(2)));
      const largest = largestMagnitude(k, source, numbers, at);
      const bits = k.let(largest.asF32().div(448).max(Math.fround(1e-4)).asI32());
      const powerOfTwo = bits.add(0x7fffff).and(0xff800000);
      // Infinity stays one; a NaN would overflow.
      const scale = k.let(k.select(bits.gt(0x7f800000), bits, powerOfTwo));
      k.store("i32", scales.add(group.shl(2)), scale);
      const all = k.let(k.splat(scale.asF32()));
      encodeBytes(k, numbers, source, at, k.let(to.add(first)), (x) => f32ToE4m3(k, k.let(x.div(all))));
    });
}

function encodeGrouped(
  k: KernelBuilder,
  { bits, groupSize }: GroupedStorage,
  options: EncodeOptions,
  count: Operand<"i32">,
  source: RowSource,
): EncodeRow {
  const largestCode = 2 ** bits - 1;
  return (from, to, scales) => {
    forGroups(k, groupSize, count, (first, numbers, group) => {
      const at = k.let(from.add(first.shl(2)));
      const { scale, zero } = groupScale(k, bits, options, source, numbers, at);
      const pair = k.let(scales.add(group.shl(3)));
      k.store("f32", pair, scale);
      k.store("f32", pair, zero, 4);
      const [scaleOfAll, zeroOfAll] = [k.let(k.splat(scale)), k.let(k.splat(zero))];
      const codeOf = (x: Value<"f32v">): Value<"i32v"> =>
        x.div(scaleOfAll).nearest().add(zeroOfAll).max(0).min(largestCode).truncate();
      const codes = k.let(to.add(first.mul(bits).shrU(3)));
      if (bits === 8) encodeBytes(k, numbers, source, at, codes, codeOf, 8);
      else encodeBits(k, bits, numbers, source, at, codes, codeOf);
    });
    // Rows are whole words, and whole words are written.
    const length = typeof count === "number" ? k.i32(count) : count;
    const end = k.let(length.add(7).shrU(3).mul(bits));
    k.for(end, end.add(3).and(-4), 1, (byte) => k.store("u8", to.add(byte), 0));
  };
}

function groupScale(
  k: KernelBuilder,
  bits: number,
  { range = "withZero", clipRatio = 1 }: EncodeOptions,
  source: RowSource,
  count: Operand<"i32">,
  from: Address,
): { readonly scale: Value<"f32">; readonly zero: Value<"f32"> } {
  const smallest = smallestRange(range);
  if (range === "symmetric") {
    const reach = largestMagnitude(k, source, count, from).asF32().max(smallest).mul(clipRatio);
    return { scale: k.let(reach.div(2 ** (bits - 1) - 1)), zero: k.f32(2 ** (bits - 1)) };
  }
  const largestCode = 2 ** bits - 1;
  const { min, max } = rangeOf(k, source, count, from);
  const stretches = range === "withZero";
  const low = k.let((stretches ? min.min(0) : min).mul(clipRatio));
  const high = k.let((stretches ? max.max(0) : max).mul(clipRatio));
  const scale = k.let(high.sub(low).max(smallest).div(largestCode));
  // In this order a zero point of NaN or -0 becomes 0.
  const zero = k.let(
    k
      .f32(0)
      .max(k.let(low.neg().div(scale).nearest()))
      .min(largestCode),
  );
  return { scale, zero };
}

/** Codes of 2, 3 or 4 bits: eight at a time become one number, and a block one register of such numbers. */
function encodeBits(
  k: KernelBuilder,
  bits: 2 | 3 | 4,
  count: Operand<"i32">,
  source: RowSource,
  from: Address,
  to: Address,
  codeOf: (x: Value<"f32v">) => Value<"i32v">,
): void {
  forBlocks(k, source, { registers: 8, bits, together: 8 }, count, from, to, (block) => {
    let packed = Array.from({ length: 8 }, (_, r) => masked(k, block, r, codeOf(k.let(block.load(r)))));
    for (let width: number = bits; packed.length > 1; width *= 2) {
      // Neighbours join: the second of each pair moves up by the width of the first.
      const weights = wordPattern(k, [1, 2 ** width]);
      packed = Array.from({ length: packed.length / 2 }, (_, i) =>
        k.let(packed[2 * i].mul(weights).pairAdd(packed[2 * i + 1].mul(weights))),
      );
    }
    const [eights] = packed;
    if (bits === 4) k.store("i32v", block.to, eights);
    else if (bits === 2) k.store("i32v to u16", block.to, eights);
    else {
      for (let lane = 0; lane < k.lanes; lane++) {
        const word = k.let(eights.lane(lane));
        k.store("u16", block.to, word, 3 * lane);
        k.store("u8", block.to, word.shrU(16), 3 * lane + 2);
      }
    }
  });
}

/** The code of a register, with zeros past the end of the row. */
function masked(k: KernelBuilder, { present }: Block, register: number, code: Value<"i32v">): Value<"i32v"> {
  return k.let(present ? code.and(present(register)) : code);
}

function wordPattern(k: KernelBuilder, [first, second]: readonly [number, number]): Value<"i32v"> {
  return k.let(k.bytes([...new Uint8Array(Int32Array.of(first, second, first, second).buffer)]).as("i32v"));
}

/** Groups of `size` numbers (0: all in one), the last may be shorter. The body gets first number, how many, and which group it is. */
function forGroups(
  k: KernelBuilder,
  size: number,
  count: Operand<"i32">,
  body: (first: Value<"i32">, numbers: Operand<"i32">, group: Value<"i32">) => void,
): void {
  if (size === 0 || (typeof count === "number" && count <= size)) {
    body(k.i32(0), count, k.i32(0));
    return;
  }
  const length = typeof count === "number" ? k.i32(count) : count;
  k.for(0, length, size, (first) => {
    const group = k.let(first.divU(size));
    if (typeof count === "number" && count % size === 0) {
      body(first, size, group);
      return;
    }
    const left = k.let(length.sub(first));
    body(first, k.let(k.select(left.lt(size), left, size)), group);
  });
}
