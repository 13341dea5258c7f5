/**
 * The types in which weights are stored, plain or in blocks, and the size of their blocks. What the bytes of a block mean is said by
 * dequantize/.
 */

import { ArgumentError } from "./errors.ts";

/** A stored weight type, named as in GGUF files. */
export type WeightType =
  | "F32"
  | "F16"
  | "BF16"
  | "Q4_0"
  | "Q4_1"
  | "Q5_0"
  | "Q5_1"
  | "Q8_0"
  | "Q2_K"
  | "Q3_K"
  | "Q4_K"
  | "Q5_K"
  | "Q6_K"
  | "IQ4_NL"
  | "IQ4_XS";

/** `size` weights are stored together in `numBytes` bytes. Plain types have size 1. */
export interface WeightBlock {
  readonly size: number;
  readonly numBytes: number;
}

const BLOCKS: Readonly<Record<WeightType, WeightBlock>> = {
  F32: { size: 1, numBytes: 4 },
  F16: { size: 1, numBytes: 2 },
  BF16: { size: 1, numBytes: 2 },
  Q4_0: { size: 32, numBytes: 18 },
  Q4_1: { size: 32, numBytes: 20 },
  Q5_0: { size: 32, numBytes: 22 },
  Q5_1: { size: 32, numBytes: 24 },
  Q8_0: { size: 32, numBytes: 34 },
  Q2_K: { size: 256, numBytes: 84 },
  Q3_K: { size: 256, numBytes: 110 },
  Q4_K: { size: 256, numBytes: 144 },
  Q5_K: { size: 256, numBytes: 176 },
  Q6_K: { size: 256, numBytes: 210 },
  IQ4_NL: { size: 32, numBytes: 18 },
  IQ4_XS: { size: 256, numBytes: 136 },
};

/** Every weight type, plain ones first. */
export const weightTypes = Object.keys(BLOCKS) as readonly WeightType[]; // Object.keys forgets the key type

/** Weights per block and bytes per block of `type`. */
export function weightBlock(type: WeightType): WeightBlock {
  return BLOCKS[type];
}

/** Bytes of `numElements` weights of `type`. Throws ArgumentError when they are not whole blocks. */
export function weightBytes(type: WeightType, numElements: number): number {
  const { size, numBytes } = BLOCKS[type];
  if (!Number.isSafeInteger(numElements) || numElements < 0 || numElements % size !== 0) {
    throw new ArgumentError(`numElements = ${numElements} is not a whole number of ${type} blocks of ${size} weights`);
  }
  return (numElements / size) * numBytes;
}
