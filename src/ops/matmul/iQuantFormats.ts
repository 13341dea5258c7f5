/** 4-bit codes into a table of sixteen unevenly spaced levels: IQ4_NL and IQ4_XS. Layouts: ggml (ggml-quants.c). */

import { finiteF16ToF32 } from "../../kernels/index.ts";
import { iq4Levels } from "../../tensor/dequantize/iQuants.ts";
import { bits, halves, nibble, nibblePairs, noMinimum, type QuantizedFormat, words } from "./packedBlock.ts";

export const iq4_nl: QuantizedFormat = {
  type: "IQ4_NL",
  groupSize: 32,
  largestByte: undefined,
  zero: 0,
  hasMinimum: false,
  unitOrder: nibblePairs,
  fields: [halves(0), words(2, 4)],
  open: (k, reader) => ({
    bytes: (sub, unit) => k.bytes(iq4Levels).lookup16(nibble(k, reader, 1, sub, unit).as("i8v")),
    scale: () => finiteF16ToF32(k, reader.halves(0, 0)),
    minimum: noMinimum,
  }),
};

export const iq4_xs: QuantizedFormat = {
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
      bytes: (sub, unit) => k.bytes(iq4Levels).lookup16(nibble(k, reader, 2, sub, unit).as("i8v")),
      scale: (group) => {
        const low = bits(reader.words(1, 0), 4 * group, 15);
        const high = bits(reader.halves(0, 1), 2 * group, 3).shl(4);
        return d.mul(low.or(high).sub(32).toF32());
      },
      minimum: noMinimum,
    };
  },
};
