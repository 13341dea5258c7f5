/**
 * How quantised weights lie in memory for the kernels, and how a kernel reads them.
 *
 * Rows are interleaved in panels of `lanes` rows: a panel holds the blocks of its rows one block column after the other, and inside
 * a block every 32-bit (or 16-bit) unit of the file's block is stored for all rows of the panel side by side. A vector load then
 * gives the same four weights of `lanes` rows, so that sums never cross lanes, and one row or many rows take the same path.
 * The size is the file's. Block layouts are those of ggml (ggml-quants.c).
 */

import { finiteF16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { type WeightType, weightBlock } from "../../tensor/index.ts";
import { panelBlockStride } from "./panels.ts";

/** A run of units of the file's block that is interleaved over the rows of a panel. */
interface Field {
  /** Byte offset in the file's block. */
  readonly source: number;
  readonly unitBytes: 2 | 4;
  readonly count: number;
  /** Bit 4 j + b of the 32-bit word goes to bit j of byte b, so that a shift brings the bits of four weights to four bytes. */
  readonly spreadBits?: true;
}

/** A block of a panel, opened by a kernel. */
export interface OpenBlock {
  /** Weights 4 unit .. 4 unit + 3 of sub-block `sub` (32 weights), each as a byte, for all rows of the panel. */
  bytes(sub: number, unit: number): Value<"i8v">;
  /** The same widened, lower and upper half of the rows; where it is absent, `bytes` is to be widened. */
  halves?(sub: number, unit: number): readonly [Value<"i16v">, Value<"i16v">];
  /** The factor of group `group` (of `groupSize` weights, counted over the block). */
  scale(group: number): Value<"f32v">;
  /** What is subtracted from each weight of the group; only where `hasMinimum`. */
  minimum(group: number): Value<"f32v">;
}

/** weight = scale * (byte - zero) - minimum. */
export interface QuantizedFormat {
  readonly type: WeightType;
  readonly groupSize: 16 | 32;
  /** The largest byte where bytes are unsigned (at most 63); undefined where they are signed 8-bit numbers. */
  readonly largestByte: number | undefined;
  readonly zero: number;
  readonly hasMinimum: boolean;
  /** Order in which a kernel should ask for the units of a sub-block, so that halves of one load stay together. */
  readonly unitOrder: readonly number[];
  readonly fields: readonly Field[];
  open(k: KernelBuilder, reader: FieldReader): OpenBlock;
}

/** Reads the units of a packed block. */
export interface FieldReader {
  /** Unit `unit` of a 4-byte field. */
  words(field: number, unit: number): Value<"i32v">;
  /** The bytes of half the rows of a unit of a 4-byte field, widened with sign. */
  widened(field: number, unit: number, half: 0 | 1): Value<"i16v">;
  /** Unit `unit` of a 2-byte field. */
  halves(field: number, unit: number): Value<"i32v">;
}

const inOrder = [0, 1, 2, 3, 4, 5, 6, 7];
const nibblePairs = [0, 4, 1, 5, 2, 6, 3, 7];

const words = (source: number, count: number): Field => ({ source, unitBytes: 4, count });
const halves = (source: number, count = 1): Field => ({ source, unitBytes: 2, count });

const lowNibbles = (k: KernelBuilder, packed: Value<"i32v">): Value<"i32v"> => packed.and(k.all("i32v", 0x0f0f0f0f));
const highNibbles = (k: KernelBuilder, packed: Value<"i32v">): Value<"i32v"> =>
  packed.shrU(4).and(k.all("i32v", 0x0f0f0f0f));
/** Bit `bit` of each byte, moved to bit `to`. */
function bitOfBytes(k: KernelBuilder, packed: Value<"i32v">, bit: number, to: number): Value<"i32v"> {
  const moved = bit > to ? packed.shrU(bit - to) : bit < to ? packed.shl(to - bit) : packed;
  return moved.and(k.all("i32v", 0x01010101 << to));
}
/** Two bits from bit `bit` on of each byte, moved to bit `to`. */
function pairOfBytes(k: KernelBuilder, packed: Value<"i32v">, bit: number, to: number): Value<"i32v"> {
  const moved = bit > to ? packed.shrU(bit - to) : bit < to ? packed.shl(to - bit) : packed;
  return moved.and(k.all("i32v", 0x03030303 << to));
}
const bits = (packed: Value<"i32v">, shift: number, mask: number): Value<"i32v"> =>
  shift === 0 ? packed.and(mask) : packed.shrU(shift).and(mask);

const noMinimum = (): never => {
  throw new Error("this format has no minimum");
};

/** 32 weights of 4 bits in 16 bytes: byte i holds weight i (low) and weight 16 + i (high). */
function nibble(k: KernelBuilder, reader: FieldReader, field: number, sub: number, unit: number): Value<"i32v"> {
  const packed = reader.words(field, sub * 4 + (unit & 3));
  return unit < 4 ? lowNibbles(k, packed) : highNibbles(k, packed);
}

const q4_0: QuantizedFormat = {
  type: "Q4_0",
  groupSize: 32,
  largestByte: 15,
  zero: 8,
  hasMinimum: false,
  unitOrder: nibblePairs,
  fields: [halves(0), words(2, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) => nibble(k, reader, 1, sub, unit).as("i8v"),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: noMinimum,
  }),
};

const q4_1: QuantizedFormat = {
  type: "Q4_1",
  groupSize: 32,
  largestByte: 15,
  zero: 0,
  hasMinimum: true,
  unitOrder: nibblePairs,
  fields: [halves(0, 2), words(4, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) => nibble(k, reader, 1, sub, unit).as("i8v"),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: () => finiteF16ToF32(k, reader.halves(0, 1)).neg(),
  }),
};

const q5_0: QuantizedFormat = {
  type: "Q5_0",
  groupSize: 32,
  largestByte: 31,
  zero: 16,
  hasMinimum: false,
  unitOrder: nibblePairs,
  fields: [halves(0), { source: 2, unitBytes: 4, count: 1, spreadBits: true }, words(6, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) =>
      nibble(k, reader, 2, sub, unit)
        .or(bitOfBytes(k, reader.words(1, 0), unit, 4))
        .as("i8v"),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: noMinimum,
  }),
};

const q5_1: QuantizedFormat = {
  type: "Q5_1",
  groupSize: 32,
  largestByte: 31,
  zero: 0,
  hasMinimum: true,
  unitOrder: nibblePairs,
  fields: [halves(0, 2), { source: 4, unitBytes: 4, count: 1, spreadBits: true }, words(8, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) =>
      nibble(k, reader, 2, sub, unit)
        .or(bitOfBytes(k, reader.words(1, 0), unit, 4))
        .as("i8v"),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: () => finiteF16ToF32(k, reader.halves(0, 1)).neg(),
  }),
};

const q8_0: QuantizedFormat = {
  type: "Q8_0",
  groupSize: 32,
  largestByte: undefined,
  zero: 0,
  hasMinimum: false,
  unitOrder: inOrder,
  fields: [halves(0), words(2, 8)],
  open: (k, reader) => ({
    bytes: (_sub, unit) => reader.words(1, unit).as("i8v"),
    halves: (_sub, unit) => [reader.widened(1, unit, 0), reader.widened(1, unit, 1)],
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: noMinimum,
  }),
};

const nonLinearTable = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

const iq4_nl: QuantizedFormat = {
  type: "IQ4_NL",
  groupSize: 32,
  largestByte: undefined,
  zero: 0,
  hasMinimum: false,
  unitOrder: nibblePairs,
  fields: [halves(0), words(2, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) => k.bytes(nonLinearTable).lookup16(nibble(k, reader, 1, sub, unit).as("i8v")),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: noMinimum,
  }),
};

const iq4_xs: QuantizedFormat = {
  type: "IQ4_XS",
  groupSize: 32,
  largestByte: undefined,
  zero: 0,
  hasMinimum: false,
  unitOrder: nibblePairs,
  // Each row: f16 scale, 8 x 2 high bits, 8 x 4 low bits of the sub-blocks' scales, 8 x 16 bytes of weights.
  fields: [halves(0, 2), words(4, 1), words(8, 32)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(0, 0)));
    return {
      bytes: (sub, unit) => k.bytes(nonLinearTable).lookup16(nibble(k, reader, 2, sub, unit).as("i8v")),
      scale: (group) => {
        const low = bits(reader.words(1, 0), 4 * group, 15);
        const high = bits(reader.halves(0, 1), 2 * group, 3).shl(4);
        return d.mul(low.or(high).sub(32).toF32());
      },
      minimum: noMinimum,
    };
  },
};

const q2_k: QuantizedFormat = {
  type: "Q2_K",
  groupSize: 16,
  largestByte: 3,
  zero: 0,
  hasMinimum: true,
  unitOrder: inOrder,
  fields: [words(0, 4), words(16, 16), halves(80, 2)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(2, 0)));
    const dMin = k.let(finiteF16ToF32(k, reader.halves(2, 1)));
    return {
      bytes: (sub, unit) => pairOfBytes(k, reader.words(1, (sub >> 2) * 8 + unit), 2 * (sub & 3), 0).as("i8v"),
      scale: (group) => d.mul(bits(reader.words(0, group >> 2), 8 * (group & 3), 15).toF32()),
      minimum: (group) => dMin.mul(bits(reader.words(0, group >> 2), 8 * (group & 3) + 4, 15).toF32()),
    };
  },
};

const q3_k: QuantizedFormat = {
  type: "Q3_K",
  groupSize: 16,
  largestByte: 7,
  zero: 4,
  hasMinimum: false,
  unitOrder: inOrder,
  fields: [words(0, 8), words(32, 16), words(96, 3), halves(108)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(3, 0)));
    return {
      bytes: (sub, unit) => {
        const low = pairOfBytes(k, reader.words(1, (sub >> 2) * 8 + unit), 2 * (sub & 3), 0);
        return low.or(bitOfBytes(k, reader.words(0, unit), sub, 2)).as("i8v");
      },
      scale: (group) => {
        const byte = 8 * (group & 3);
        const low = bits(reader.words(2, (group >> 2) & 1), byte + (group >= 8 ? 4 : 0), 15);
        const high = bits(reader.words(2, 2), byte + 2 * (group >> 2), 3).shl(4);
        return d.mul(low.or(high).sub(32).toF32());
      },
      minimum: noMinimum,
    };
  },
};

/** The 6-bit scales and minima of Q4_K and Q5_K: 12 bytes, of which the last four hold the low halves of the upper four. */
function sixBitScales(
  reader: FieldReader,
  field: number,
): { scale(group: number): Value<"i32v">; minimum(group: number): Value<"i32v"> } {
  const byte = (group: number): number => 8 * (group & 3);
  return {
    scale: (group) =>
      group < 4
        ? bits(reader.words(field, 0), byte(group), 63)
        : bits(reader.words(field, 2), byte(group), 15).or(bits(reader.words(field, 0), byte(group) + 6, 3).shl(4)),
    minimum: (group) =>
      group < 4
        ? bits(reader.words(field, 1), byte(group), 63)
        : bits(reader.words(field, 2), byte(group) + 4, 15).or(bits(reader.words(field, 1), byte(group) + 6, 3).shl(4)),
  };
}

const q4_k: QuantizedFormat = {
  type: "Q4_K",
  groupSize: 32,
  largestByte: 15,
  zero: 0,
  hasMinimum: true,
  unitOrder: inOrder,
  fields: [halves(0, 2), words(4, 3), words(16, 32)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(0, 0)));
    const dMin = k.let(finiteF16ToF32(k, reader.halves(0, 1)));
    const scales = sixBitScales(reader, 1);
    return {
      bytes: (sub, unit) => {
        const packed = reader.words(2, (sub >> 1) * 8 + unit);
        return ((sub & 1) === 0 ? lowNibbles(k, packed) : highNibbles(k, packed)).as("i8v");
      },
      scale: (group) => d.mul(scales.scale(group).toF32()),
      minimum: (group) => dMin.mul(scales.minimum(group).toF32()),
    };
  },
};

const q5_k: QuantizedFormat = {
  type: "Q5_K",
  groupSize: 32,
  largestByte: 31,
  zero: 0,
  hasMinimum: true,
  unitOrder: inOrder,
  fields: [halves(0, 2), words(4, 3), words(16, 8), words(48, 32)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(0, 0)));
    const dMin = k.let(finiteF16ToF32(k, reader.halves(0, 1)));
    const scales = sixBitScales(reader, 1);
    return {
      bytes: (sub, unit) => {
        const packed = reader.words(3, (sub >> 1) * 8 + unit);
        const low = (sub & 1) === 0 ? lowNibbles(k, packed) : highNibbles(k, packed);
        return low.or(bitOfBytes(k, reader.words(2, unit), sub, 4)).as("i8v");
      },
      scale: (group) => d.mul(scales.scale(group).toF32()),
      minimum: (group) => dMin.mul(scales.minimum(group).toF32()),
    };
  },
};

const q6_k: QuantizedFormat = {
  type: "Q6_K",
  groupSize: 16,
  largestByte: 63,
  zero: 32,
  hasMinimum: false,
  unitOrder: inOrder,
  fields: [words(0, 32), words(128, 16), words(192, 4), halves(208)],
  open: (k, reader) => {
    const d = k.let(finiteF16ToF32(k, reader.halves(3, 0)));
    return {
      bytes: (sub, unit) => {
        const [half, quarter] = [sub >> 2, sub & 3];
        const packed = reader.words(0, half * 16 + (quarter & 1) * 8 + unit);
        const low = quarter < 2 ? lowNibbles(k, packed) : highNibbles(k, packed);
        return low.or(pairOfBytes(k, reader.words(1, half * 8 + unit), 2 * quarter, 4)).as("i8v");
      },
      scale: (group) =>
        d.mul(
          reader
            .words(2, group >> 2)
            .shl(24 - 8 * (group & 3))
            .shr(24)
            .toF32(),
        ),
      minimum: noMinimum,
    };
  },
};

const formats = [q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs];

/** Undefined for F32, F16 and BF16, which are not quantised. */
export function quantizedFormat(type: WeightType): QuantizedFormat | undefined {
  return formats.find((format) => format.type === type);
}

/** Where unit `unit` of field `field` of a packed block begins: fields follow each other, units inside a field too. */
export function packedOffset(format: QuantizedFormat, field: number, unit: number, lanes: number): number {
  const before = format.fields.slice(0, field).reduce((sum, { unitBytes, count }) => sum + unitBytes * count, 0);
  return (before + unit * format.fields[field].unitBytes) * lanes;
}

/** A reader of the packed block at an address. It keeps the last words of each field: the two nibbles of a byte are asked for in turn. */
export function fieldReader(k: KernelBuilder, format: QuantizedFormat, block: Value<"i32">): FieldReader {
  const last = new Map<number, { readonly unit: number; readonly words: Value<"i32v"> }>();
  return {
    words: (field, unit) => {
      const kept = last.get(field);
      if (kept?.unit === unit) return kept.words;
      const words = k.let(k.load("i32v", block, packedOffset(format, field, unit, k.lanes)));
      last.set(field, { unit, words });
      return words;
    },
    widened: (field, unit, half) =>
      k.load("i8 to i16v", block, packedOffset(format, field, unit, k.lanes) + half * 2 * k.lanes),
    halves: (field, unit) => k.load("u16 to i32v", block, packedOffset(format, field, unit, k.lanes)),
  };
}

/** Sub-blocks of 32 weights in a block. */
export const numSubBlocks = (format: QuantizedFormat): number => weightBlock(format.type).size / 32;

/** The format of a type that must be quantised. */
export function formatOf(type: WeightType): QuantizedFormat {
  const format = quantizedFormat(type);
  if (format === undefined) throw new Error(`${type} is not quantised`);
  return format;
}

/** Opens each block of the panel that begins at `start`. */
export function forBlocks(
  k: KernelBuilder,
  type: WeightType,
  columns: number,
  start: Value<"i32">,
  body: (open: OpenBlock, block: Value<"i32">) => void,
): void {
  const format = formatOf(type);
  const stride = panelBlockStride(type, k.lanes);
  k.for(0, columns / weightBlock(type).size, 1, (block) => {
    body(format.open(k, fieldReader(k, format, k.let(start.add(block.mul(stride))))), block);
  });
}
