/**
 * The float32 values of stored weights: one plain loop for each block format. This is the definition that kernels and packed forms are tested
 * against; it is not meant to be fast.
 */

import { ShapeError } from "../errors.ts";
import { type WeightType, weightBlock, weightBytes } from "../weightTypes.ts";
import { dequantizeIQ4_NL, dequantizeIQ4_XS } from "./iQuants.ts";
import { dequantizeQ2_K, dequantizeQ3_K, dequantizeQ4_K, dequantizeQ5_K, dequantizeQ6_K } from "./kQuants.ts";
import { dequantizeQ4_0, dequantizeQ4_1, dequantizeQ5_0, dequantizeQ5_1, dequantizeQ8_0 } from "./legacy.ts";
import { dequantizeBF16, dequantizeF16, dequantizeF32 } from "./plain.ts";

/** Writes the weights of the block at byte `at` of `bytes` to `out` from index `to`. */
export type BlockDequantizer = (bytes: Uint8Array, at: number, out: Float32Array, to: number) => void;

const DEQUANTIZERS: Readonly<Record<WeightType, BlockDequantizer>> = {
  F32: dequantizeF32,
  F16: dequantizeF16,
  BF16: dequantizeBF16,
  Q4_0: dequantizeQ4_0,
  Q4_1: dequantizeQ4_1,
  Q5_0: dequantizeQ5_0,
  Q5_1: dequantizeQ5_1,
  Q8_0: dequantizeQ8_0,
  Q2_K: dequantizeQ2_K,
  Q3_K: dequantizeQ3_K,
  Q4_K: dequantizeQ4_K,
  Q5_K: dequantizeQ5_K,
  Q6_K: dequantizeQ6_K,
  IQ4_NL: dequantizeIQ4_NL,
  IQ4_XS: dequantizeIQ4_XS,
};

/** The function that expands one block of `type`. */
export function blockDequantizer(type: WeightType): BlockDequantizer {
  return DEQUANTIZERS[type];
}

/**
 * The `numElements` weights stored in `bytes`. Throws ArgumentError when `numElements` is not a whole number of blocks and ShapeError when
 * `bytes` has another length than they need.
 */
export function dequantize(type: WeightType, bytes: Uint8Array, numElements: number): Float32Array<ArrayBuffer> {
  const expected = weightBytes(type, numElements);
  if (bytes.length !== expected) {
    throw new ShapeError(
      `bytes must have length ${expected} for ${numElements} weights of ${type}, got ${bytes.length}`,
    );
  }
  const { size, numBytes } = weightBlock(type);
  const block = DEQUANTIZERS[type];
  const out = new Float32Array(numElements);
  for (let at = 0, to = 0; to < numElements; at += numBytes, to += size) block(bytes, at, out, to);
  return out;
}
