/** Blocks of 32 weights with one scale, and in the _1 types one minimum, of their own: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0. Layouts: ggml (ggml-quants.c). */

import { finiteF16ToF32 } from "../../kernels/index.ts";
import {
  bitOfBytes,
  halves,
  inOrder,
  nibble,
  nibblePairs,
  noMinimum,
  type QuantizedFormat,
  words,
} from "./packedBlock.ts";

export const q4_0: QuantizedFormat = {
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

export const q4_1: QuantizedFormat = {
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

export const q5_0: QuantizedFormat = {
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

export const q5_1: QuantizedFormat = {
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

export const q8_0: QuantizedFormat = {
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
