/**
 * Matrix products with weights in any stored type: out[t, r] = sum over c of weight[r, c] x[t, c] (+ bias[r]) (+ out[t, r]).
 * A linear layer of a Hugging Face or GGUF checkpoint ([out features, in features]) applied to rows of activations.
 */

import { ArgumentError, ShapeError, type WeightType, weightBlock } from "../../tensor/index.ts";
import type { Arithmetic } from "./activations.ts";

/** A weight matrix on a device, packed into panels of interleaved rows. */
export interface WeightMatrix {
  readonly name: string;
  readonly type: WeightType;
  /** Out features. */
  readonly rows: number;
  /** In features; a multiple of the type's block size. */
  readonly columns: number;
  readonly pointer: number;
  readonly numBytes: number;
  /** How products with it are summed. */
  readonly arithmetic: Arithmetic;
}

/**
 * `f32`: weights are dequantised and multiplied with the activations as they are. `int8`: 8-bit activations, block by block, for
 * quantised weights (16-bit ones for weights of 8 bits, which need them for exact integer sums). `int16`: 16-bit activations.
 * Weights stored as F32, F16 or BF16 are always multiplied in f32.
 */
export type ActivationPrecision = "f32" | "int8" | "int16";

const quantized = (type: WeightType): boolean => type !== "F32" && type !== "F16" && type !== "BF16";
const hasEightBitWeights = (type: WeightType): boolean => type === "Q8_0" || type === "IQ4_NL" || type === "IQ4_XS";

/** The arithmetic that weights of a type take at a precision of activations. */
export function arithmeticFor(type: WeightType, precision: ActivationPrecision): Arithmetic {
  if (!quantized(type) || precision === "f32") return "f32";
  return precision === "int16" || hasEightBitWeights(type) ? "i16" : "i8";
}

/** Device addresses and sizes of one product. */
export interface MatmulArgs {
  readonly weight: WeightMatrix;
  /** Address of the activations: f32 [numTokens, columns], or what `ActivationWorkspace` made for the weight's arithmetic. */
  readonly activations: number;
  /** f32 [numTokens, outStride], of which the first `rows` are written. */
  readonly out: number;
  readonly numTokens: number;
  /** Elements from one token's outputs to the next. Default: the weight's rows. */
  readonly outStride?: number;
  /** f32 [rows]. */
  readonly bias?: number;
  /** Adds to `out` instead of overwriting it. */
  readonly accumulate?: boolean;
}

/** Throws ArgumentError or ShapeError naming what does not fit. */
export function checkMatmul(args: MatmulArgs): void {
  const { weight, numTokens, outStride = weight.rows } = args;
  if (!Number.isInteger(numTokens) || numTokens < 0)
    throw new ArgumentError(`numTokens must be a whole number, got ${numTokens}`);
  if (!Number.isInteger(outStride) || outStride < weight.rows)
    throw new ShapeError(`outStride must be at least the ${weight.rows} rows of ${weight.name}, got ${outStride}`);
  if (args.activations === 0)
    throw new ArgumentError(`activations of ${weight.name} were not prepared for ${weight.arithmetic} arithmetic`);
  if (args.out === 0) throw new ArgumentError(`out of ${weight.name} must be an address, got 0`);
  if (args.bias === 0) throw new ArgumentError(`bias of ${weight.name} must be an address or left out, got 0`);
}

/** Throws ShapeError when a matrix of this shape cannot be stored in this type. */
export function checkWeightShape(name: string, type: WeightType, rows: number, columns: number): void {
  if (!Number.isInteger(rows) || rows <= 0 || !Number.isInteger(columns) || columns <= 0) {
    throw new ShapeError(`${name} must have a positive number of rows and columns, got [${rows}, ${columns}]`);
  }
  const { size } = weightBlock(type);
  if (columns % size !== 0)
    throw new ShapeError(`${name} must have a multiple of ${size} columns to be ${type}, got ${columns}`);
}
