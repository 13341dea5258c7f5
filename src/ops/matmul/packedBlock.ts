/**
 * How a quantised block lies in memory for the kernels, and how a kernel reads it: what `QuantizedFormat`s are made of. The formats are
 * in legacyFormats.ts, kQuantFormats.ts and iQuantFormats.ts, the table of them in formats.ts, the place of a block in panels.ts.
 *
 * Inside a packed block every 32-bit (or 16-bit) unit of the file's block is stored for all rows of the panel side by side. A vector
 * load then gives the same four weights of `lanes` rows, so that sums never cross lanes, and one row or many rows take the same path.
 * The size is the file's.
 */

import type { KernelBuilder, Value } from "../../kernels/index.ts";
import type { WeightType } from "../../tensor/index.ts";

/** A run of units of the file's block that is interleaved over the rows of a panel. */
export interface Field {
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

/** Orders of units: as stored; with the two nibbles of a byte next to each other. */
export const inOrder = [0, 1, 2, 3, 4, 5, 6, 7];
export const nibblePairs = [0, 4, 1, 5, 2, 6, 3, 7];
/** Fields of `count` units from byte `source` of the file's block on. */
export const words = (source: number, count: number): Field => ({ source, unitBytes: 4, count });
export const halves = (source: number, count = 1): Field => ({ source, unitBytes: 2, count });

/** The lower, or the upper, half of each byte. */
export const lowNibbles = (k: KernelBuilder, packed: Value<"i32v">): Value<"i32v"> =>
  packed.and(k.all("i32v", 0x0f0f0f0f));
export const highNibbles = (k: KernelBuilder, packed: Value<"i32v">): Value<"i32v"> =>
  packed.shrU(4).and(k.all("i32v", 0x0f0f0f0f));
/** Bit `bit` of each byte, moved to bit `to`. */
export function bitOfBytes(k: KernelBuilder, packed: Value<"i32v">, bit: number, to: number): Value<"i32v"> {
  const moved = bit > to ? packed.shrU(bit - to) : bit < to ? packed.shl(to - bit) : packed;
  return moved.and(k.all("i32v", 0x01010101 << to));
}
/** Two bits from bit `bit` on of each byte, moved to bit `to`. */
export function pairOfBytes(k: KernelBuilder, packed: Value<"i32v">, bit: number, to: number): Value<"i32v"> {
  const moved = bit > to ? packed.shrU(bit - to) : bit < to ? packed.shl(to - bit) : packed;
  return moved.and(k.all("i32v", 0x03030303 << to));
}
/** `mask` at bit `shift` of each lane. */
export const bits = (packed: Value<"i32v">, shift: number, mask: number): Value<"i32v"> =>
  shift === 0 ? packed.and(mask) : packed.shrU(shift).and(mask);

/** For formats without `hasMinimum`: nobody may ask. */
export const noMinimum = (): never => {
  throw new Error("this format has no minimum");
};

/** 32 weights of 4 bits in 16 bytes: byte i holds weight i (low) and weight 16 + i (high). */
export function nibble(k: KernelBuilder, reader: FieldReader, field: number, sub: number, unit: number): Value<"i32v"> {
  const packed = reader.words(field, sub * 4 + (unit & 3));
  return unit < 4 ? lowNibbles(k, packed) : highNibbles(k, packed);
}
