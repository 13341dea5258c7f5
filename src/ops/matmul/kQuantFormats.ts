/** Super-blocks of 256 weights whose sub-blocks carry small integer scales: Q2_K to Q6_K. Layouts: ggml (ggml-quants.c). */

import { finiteF16ToF32, type KernelBuilder, type Value } from "../../kernels/index.ts";
import {
  bitOfBytes,
  bits,
  type FieldReader,
  halves,
  highNibbles,
  inOrder,
  lowNibbles,
  noMinimum,
  type OpenBlock,
  pairOfBytes,
  type QuantizedFormat,
  words,
} from "./packedBlock.ts";

export const q2_k: QuantizedFormat = {
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

export const q3_k: QuantizedFormat = {
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

/** The factors of a block that begins with two f16 (for scales and minima) and six-bit scales. */
function sixBitFactors(k: KernelBuilder, reader: FieldReader): Pick<OpenBlock, "scale" | "minimum"> {
  const d = k.let(finiteF16ToF32(k, reader.halves(0, 0)));
  const dMin = k.let(finiteF16ToF32(k, reader.halves(0, 1)));
  const scales = sixBitScales(reader, 1);
  return {
    scale: (group) => d.mul(scales.scale(group).toF32()),
    minimum: (group) => dMin.mul(scales.minimum(group).toF32()),
  };
}

/** Two sub-blocks share 32 bytes: the even one has the lower nibbles, the odd one the upper. */
function nibbleOfPair(k: KernelBuilder, reader: FieldReader, field: number, sub: number, unit: number): Value<"i32v"> {
  const packed = reader.words(field, (sub >> 1) * 8 + unit);
  return (sub & 1) === 0 ? lowNibbles(k, packed) : highNibbles(k, packed);
}

export const q4_k: QuantizedFormat = {
  type: "Q4_K",
  groupSize: 32,
  largestByte: 15,
  zero: 0,
  hasMinimum: true,
  unitOrder: inOrder,
  fields: [halves(0, 2), words(4, 3), words(16, 32)],
  open: (k, reader) => {
    return {
      ...sixBitFactors(k, reader),
      bytes: (sub, unit) => {
        return nibbleOfPair(k, reader, 2, sub, unit).as("i8v");
      },
    };
  },
};

export const q5_k: QuantizedFormat = {
  type: "Q5_K",
  groupSize: 32,
  largestByte: 31,
  zero: 0,
  hasMinimum: true,
  unitOrder: inOrder,
  fields: [halves(0, 2), words(4, 3), words(16, 8), words(48, 32)],
  open: (k, reader) => {
    return {
      ...sixBitFactors(k, reader),
      bytes: (sub, unit) => {
        return nibbleOfPair(k, reader, 3, sub, unit)
          .or(bitOfBytes(k, reader.words(2, unit), sub, 4))
          .as("i8v");
      },
    };
  },
};

export const q6_k: QuantizedFormat = {
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
