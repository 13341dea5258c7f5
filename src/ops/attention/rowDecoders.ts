/**
 * Kernel part: one row of each storage type, as f32. A new storage type is a new case here, one in storage.ts and one in storageCodec.ts.
 * Which rows are read is keyLoader.ts's business.
 */
import { bf16ToF32, f16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { clearTail, type Extent } from "./dims.ts";
import type { GroupedStorage, PageStorage, TiledStorage } from "./storage.ts";

type Address = Value<"i32">;

/** Addresses of one row's units, of its scales (anything where the storage has none), and of the f32 row to write. */
export interface RowAddresses {
  readonly from: Address;
  readonly scales: Address;
  readonly to: Address;
}

/**
 * Writes `count` channels at `to`, and zeros up to the end of the last register. It may write up to 15 channels past the last on the way,
 * and read as many units, but no value from there stays.
 */
export type DecodeRow = (row: RowAddresses, count: Extent) => void;

/** The decoder of a storage. To be called outside of all loops, where its constants are set up. */
export function rowDecoder(k: KernelBuilder, storage: PageStorage): DecodeRow {
  const decode = elementDecoder(k, storage);
  return (row, count) => {
    decode(row, count);
    clearTail(k, row.to, count);
  };
}

function elementDecoder(k: KernelBuilder, storage: PageStorage): DecodeRow {
  if (typeof storage !== "string") {
    return storage.kind === "tiled" ? tiledDecoder(k, storage) : groupedDecoder(k, storage);
  }
  switch (storage) {
    case "f32":
      return f32Decoder(k);
    case "f16":
      return f16Decoder(k);
    case "bf16":
      return bf16Decoder(k);
    case "f8e4m3":
      return byteDecoder(k, () => (byte) => e4m3ToF32(k, byte));
    case "f8e5m2":
      return byteDecoder(k, () => (byte) => f16ToF32(k, byte.shl(8)));
    case "i8":
      return byteDecoder(k, ({ scales }) => {
        const scale = k.let(k.splat(k.load("f32", scales).mul(1 / 127.5)));
        return (byte) => byte.shl(24).shr(24).toF32().mul(scale);
      });
  }
}

function f32Decoder(k: KernelBuilder): DecodeRow {
  return ({ from, to }, count) =>
    forRegisters(k, 0, count, 1, (d, step) => {
      const offset = step * k.lanes * 4;
      k.store("f32v", k.let(to.add(d.shl(2))), k.load("f32v", k.let(from.add(d.shl(2))), offset), offset);
    });
}

function bf16Decoder(k: KernelBuilder): DecodeRow {
  return ({ from, to }, count) =>
    forRegisters(k, 0, count, 1, (d, step) => {
      const bits = k.load("u16 to i32v", k.let(from.add(d.shl(1))), step * k.lanes * 2);
      k.store("f32v", k.let(to.add(d.shl(2))), bf16ToF32(bits), step * k.lanes * 4);
    });
}

/**
 * Moved to the place of an f32's, the bits of a half are its value times 2^-112, subnormals included. Only infinities and NaN come out
 * wrong: a row that holds one is done again the long way.
 */
function f16Decoder(k: KernelBuilder): DecodeRow {
  const signAndBits = k.let(k.all("i32v", 0x8fffe000 | 0));
  const scale = k.let(k.all("f32v", 2 ** 112));
  const exponentMask = k.let(k.all("i32v", 0x7c007c00));
  const lowestExponentBit = k.let(k.all("i32v", 0x04000400));
  return ({ from, to }, count) => {
    const carries = k.var("i32v", 0);
    forRegisters(k, 0, count, 2, (d, step) => {
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

type ByteToF32 = (byte: Value<"i32v">) => Value<"f32v">;

/** Rows of one byte a channel; `setUp` is called once a row, its result gets the bytes 0..255 in each lane. */
function byteDecoder(k: KernelBuilder, setUp: (row: RowAddresses) => ByteToF32): DecodeRow {
  return (row, count) => decodeBytes(k, row, 0, count, setUp(row));
}

function decodeBytes(
  k: KernelBuilder,
  { from, to }: RowAddresses,
  begin: Extent,
  end: Extent,
  decode: ByteToF32,
): void {
  forRegisters(k, begin, end, 2, (d, step) => {
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

function tiledDecoder(k: KernelBuilder, { tile }: TiledStorage): DecodeRow {
  return (row, count) =>
    k.for(0, count, tile, (begin) => {
      const scale = k.let(k.loadSplatF32(row.scales.add(begin.divU(tile).shl(2))));
      decodeBytes(k, row, begin, groupEnd(k, begin, tile, count), (byte) => e4m3ToF32(k, byte).mul(scale));
    });
}

function groupedDecoder(k: KernelBuilder, { bits, groupSize }: GroupedStorage): DecodeRow {
  const unpack = bits === 8 ? undefined : codeUnpacker(k, bits);
  return (row, count) => {
    const group = (begin: Extent, end: Extent, pair: Address): void => {
      const scale = k.let(k.loadSplatF32(pair));
      const zero = k.let(k.loadSplatF32(pair, 4));
      const number = (code: Value<"i32v">): Value<"f32v"> => code.toF32().sub(zero).mul(scale);
      if (unpack === undefined) decodeBytes(k, row, begin, end, number);
      else unpackCodes(k, row, begin, end, bits, (word) => number(unpack(word)));
    };
    if (groupSize === 0) return group(0, count, row.scales);
    k.for(0, count, groupSize, (begin) => {
      const pair = k.let(row.scales.add(begin.divU(groupSize).shl(3)));
      group(begin, groupEnd(k, begin, groupSize, count), pair);
    });
  };
}

/** Eight codes a step, in the `bits` bytes of a word. */
function unpackCodes(
  k: KernelBuilder,
  { from, to }: RowAddresses,
  begin: Extent,
  end: Extent,
  bits: number,
  decode: (word: Value<"i32">) => Value<"f32v">,
): void {
  k.for(begin, end, 8, (d) => {
    const word = k.let(k.load("i32", from.add(d.shrU(3).mul(bits))));
    const out = k.let(to.add(d.shl(2)));
    for (let first = 0; first < 8; first += k.lanes) {
      k.store("f32v", out, decode(first === 0 ? word : k.let(word.shrU(first * bits))), first * 4);
    }
  });
}

/** The lowest `lanes` codes of a word, one in each lane: multiplied to the top of the lane, and shifted down again. */
function codeUnpacker(k: KernelBuilder, bits: number): (word: Value<"i32">) => Value<"i32v"> {
  const exponent = k.all("i32v", 127 + 32 - bits).sub(k.laneIndices().mul(bits));
  const factors = k.let(exponent.shl(23).as("f32v").truncate());
  return (word) =>
    k
      .splat(word)
      .mul(factors)
      .shrU(32 - bits);
}

function groupEnd(k: KernelBuilder, begin: Value<"i32">, size: number, count: Extent): Value<"i32"> {
  const end = k.let(begin.add(size));
  return k.let(k.select(end.lt(count), end, count));
}

/**
 * A loop over the channels `begin` up to `end`, `registers` registers a step, a few steps unrolled where the count is known: `d` is the
 * first channel of the unrolled group.
 */
function forRegisters(
  k: KernelBuilder,
  begin: Extent,
  end: Extent,
  registers: number,
  body: (d: Value<"i32">, step: number) => void,
): void {
  const channels = registers * k.lanes;
  const count = typeof begin === "number" && typeof end === "number" ? end - begin : 1;
  const unroll = [4, 2].find((steps) => count % (steps * channels) === 0) ?? 1;
  k.for(begin, end, unroll * channels, (d) => {
    for (let step = 0; step < unroll; step++) body(d, step);
  });
}
