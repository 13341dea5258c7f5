/**
 * Root-mean-square normalisation of each row: y = x / sqrt(mean(x^2) + eps) * (weight + weightOffset).
 * Zhang & Sennrich 2019 (arXiv:1910.07467); Gemma stores weight - 1, hence `weightOffset`.
 */
import { ArgumentError } from "../../tensor/index.ts";
import {
  checkPositive,
  checkRows,
  checkVector,
  checkWrittenRows,
  countRows,
  type DeviceTensor,
  type RowsTensor,
} from "../elementwise/rows.ts";

/** What specialises the kernel; the number of rows and the strides are run-time values. */
export interface RmsNormSpec {
  /** Elements that are normalised together: the hidden size, or the head dimension for a norm of queries and keys. */
  readonly dim: number;
  /** Added to the mean square. At least 0. */
  readonly eps: number;
  readonly weightOffset: 0 | 1;
  /** `add`: out = residual + y, the norm after a block of Gemma 2 and 3. */
  readonly residual: "none" | "add";
  /** Vectors of `dim` elements side by side in one row, each normalised alone with the same weight (Qwen 3, Gemma 3). Default 1. */
  readonly numHeads?: number;
}

/**
 * x, out, residual: [rows, numHeads * dim] f32 (any shape whose rows have that many elements); weight: [dim] f32. `out` may be `x` or
 * `residual` itself. `residual` is there exactly if the spec says `add`. `numRows` defaults to the rows of `x`.
 */
export interface RmsNormArgs {
  readonly x: RowsTensor;
  readonly weight: DeviceTensor;
  readonly out: RowsTensor;
  readonly residual?: RowsTensor;
  readonly numRows?: number;
}

/** Row count and strides (in elements) of a call that passed its checks. */
export interface CheckedRmsNorm {
  readonly numRows: number;
  readonly xStride: number;
  readonly outStride: number;
  readonly residualStride: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkRmsNorm(spec: RmsNormSpec, args: RmsNormArgs): CheckedRmsNorm {
  const numHeads = spec.numHeads ?? 1;
  checkPositive("dim", spec.dim);
  checkPositive("numHeads", numHeads);
  if (!(spec.eps >= 0 && spec.eps < Infinity)) {
    throw new ArgumentError(`eps must be a finite number of at least 0, got ${spec.eps}`);
  }
  if ((spec.residual === "add") !== (args.residual !== undefined)) {
    const given = args.residual === undefined ? "none was given" : "one was given";
    throw new ArgumentError(
      `residual must be given exactly if spec.residual is "add": it is "${spec.residual}", ${given}`,
    );
  }
  const numRows = countRows(args.numRows, args.x);
  const length = spec.dim * numHeads;
  checkVector("weight", args.weight, spec.dim);
  return {
    numRows,
    xStride: checkRows("x", args.x, numRows, length),
    outStride: checkWrittenRows("out", args.out, numRows, length),
    residualStride: args.residual === undefined ? 0 : checkRows("residual", args.residual, numRows, length),
  };
}
