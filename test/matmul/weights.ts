/** Weights of every stored type for tests of the matrix product, and matrices of them on a device. For tests only. */

import {
  type ActivationPrecision,
  ActivationWorkspace,
  allocateWeightMatrix,
  arithmeticFor,
  type MatmulArgs,
  recordMatmul,
  recordPackRows,
  type WeightMatrix,
} from "../../src/ops/matmul/index.ts";
import {
  bf16FromF32,
  f16FromF32,
  type WeightType,
  weightBlock,
  weightBytes,
  weightTypes,
} from "../../src/tensor/index.ts";
import type { TestDevice } from "../ops/testDevice.ts";

/** Byte offsets of a block's f16 scales and minima; all other bytes of a block may be anything. */
const scaleOffsets: Partial<Record<WeightType, readonly number[]>> = {
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q8_0: [0],
  Q2_K: [80, 82],
  Q3_K: [108],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
  IQ4_NL: [0],
  IQ4_XS: [0],
};

/** Reproducible numbers below 1: mulberry32 by Tommy Ettinger. */
export function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random stored weights: every bit of a block is random, but its f16 scales lie between 2^-7 and 2^-5, of either sign. */
export function randomWeights(type: WeightType, numElements: number, seed: number): Uint8Array {
  const random = uniform(seed);
  const offsets = scaleOffsets[type];
  if (offsets === undefined) {
    const values = Float32Array.from({ length: numElements }, () => random() * 2 - 1);
    const stored = type === "F32" ? values : type === "F16" ? f16FromF32(values) : bf16FromF32(values);
    return new Uint8Array(stored.buffer);
  }
  const bytes = Uint8Array.from({ length: weightBytes(type, numElements) }, () => random() * 256);
  for (let block = 0; block < bytes.length; block += weightBlock(type).numBytes) {
    for (const offset of offsets) bytes[block + offset + 1] = (random() < 0.5 ? 0x80 : 0) | (0x20 + random() * 8);
  }
  return bytes;
}

/** Each weight type with the precisions that give it different arithmetic. */
export const typesAndPrecisions: readonly (readonly [WeightType, ActivationPrecision])[] = weightTypes.flatMap(
  (type) => {
    const byArithmetic = new Map<string, ActivationPrecision>();
    for (const precision of ["f32", "int16", "int8"] as const) {
      const arithmetic = arithmeticFor(type, precision);
      if (!byArithmetic.has(arithmetic)) byArithmetic.set(arithmetic, precision);
    }
    return [...byArithmetic.values()].map((precision) => [type, precision] as const);
  },
);

export interface StoredMatrix {
  readonly type: WeightType;
  readonly rows: number;
  readonly columns: number;
  readonly precision: ActivationPrecision;
  readonly bytes: Uint8Array;
}

/** Puts a matrix on the device, packed in chunks that begin at these rows. */
export async function packed(test: TestDevice, stored: StoredMatrix, chunkStarts = [0]): Promise<WeightMatrix> {
  const { type, rows, columns, precision, bytes } = stored;
  const weight = allocateWeightMatrix(test.device, { name: `${type} matrix`, type, rows, columns, precision });
  const rowBytes = weightBytes(type, columns);
  for (const [i, first] of chunkStarts.entries()) {
    const end = chunkStarts[i + 1] ?? rows;
    const source = test.bytes([end - first], "u8", bytes.subarray(first * rowBytes, end * rowBytes));
    await test.run((recorder) => recordPackRows(recorder, weight, source.pointer, first, end - first));
  }
  return weight;
}

export interface ProductOptions {
  readonly bias?: Float32Array;
  /** What `out` holds before. Default: zeros, as many as are written. */
  readonly before?: Float32Array;
  readonly outStride?: number;
  readonly accumulate?: boolean;
}

/** The product with some tokens (f32 [numTokens, columns]): the whole `out` afterwards. */
export async function product(
  test: TestDevice,
  weight: WeightMatrix,
  x: Float32Array,
  { bias, before, ...layout }: ProductOptions = {},
): Promise<Float32Array> {
  const numTokens = x.length / weight.columns;
  const activations = test.f32([x.length], x);
  const initial = before ?? new Float32Array(numTokens * weight.rows);
  const out = test.f32([initial.length], initial);
  const added = bias === undefined ? {} : { bias: test.f32([bias.length], bias).pointer };
  const workspace = new ActivationWorkspace(test.device, weight.columns, Math.max(numTokens, 1), [weight]);
  await test.run((recorder) => {
    const prepared = workspace.record(recorder, activations.pointer, numTokens);
    const args: MatmulArgs = { weight, activations: prepared[weight.arithmetic], out: out.pointer, numTokens };
    recordMatmul(recorder, { ...args, ...layout, ...added });
  });
  workspace.free();
  return test.readF32(out);
}
