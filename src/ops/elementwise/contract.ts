/**
 * Sums and products of rows, element by element: what a bias, a residual connection or an embedding scale needs.
 * Activations with a gate are `gatedActivation`; normalisation is `rmsNorm`.
 */
import {
  checkPositive,
  checkRows,
  checkVector,
  checkWrittenRows,
  countRows,
  type DeviceTensor,
  type RowsTensor,
} from "./rows.ts";

/** `add`: out = x + y. `multiply`: out = x * y. `scale`: out = x * factor. */
export type ElementwiseOperation = "add" | "multiply" | "scale";

/** What specialises the kernel; the row length and the strides are run-time values. */
export interface ElementwiseSpec {
  readonly operation: ElementwiseOperation;
}

/**
 * x, y, out: rows of n f32 elements, where n is the row length of `x`; `out` may be `x` or `y` itself (in place).
 * A `y` with row stride 0 is one row used for all: a bias. `numRows` defaults to the rows of `x`.
 */
export interface CombineRowsArgs {
  readonly x: RowsTensor;
  readonly y: RowsTensor;
  readonly out: RowsTensor;
  readonly numRows?: number;
}

/** x, out: [rows, n]; bias: [n]. */
export interface AddBiasArgs {
  readonly x: RowsTensor;
  readonly bias: DeviceTensor;
  readonly out: RowsTensor;
  readonly numRows?: number;
}

/** x, out: [rows, n]; `factor` is rounded to f32. */
export interface ScaleRowsArgs {
  readonly x: RowsTensor;
  readonly factor: number;
  readonly out: RowsTensor;
  readonly numRows?: number;
}

/** Row count, row length and strides (in elements) of a call that passed its checks. */
export interface CheckedRows {
  readonly numRows: number;
  readonly length: number;
  readonly xStride: number;
  readonly yStride: number;
  readonly outStride: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkCombineRows(args: CombineRowsArgs, length: number): CheckedRows {
  const numRows = countRows(args.numRows, args.x);
  checkPositive("the row length", length);
  return {
    numRows,
    length,
    xStride: checkRows("x", args.x, numRows, length),
    yStride: checkRows("y", args.y, numRows, length),
    outStride: checkWrittenRows("out", args.out, numRows, length),
  };
}

/** The bias as rows of stride 0. Throws ShapeError unless it is a vector of the row length. */
export function biasRows(bias: DeviceTensor, numRows: number, length: number): RowsTensor {
  checkVector("bias", bias, length);
  return { ...bias, shape: [numRows, length], rowStride: 0 };
}
