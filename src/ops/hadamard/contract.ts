/**
 * The orthonormal Hadamard transform of each row: it spreads outliers over all channels before latents are quantised, and is its own
 * inverse up to a transposition. Matrices are built in construction.ts; folding them into weights is in fold.ts. Sources: QuaRot (arXiv 2404.00456),
 * Palu (arXiv 2407.21118).
 */
import { checkPositive, checkRows, checkWrittenRows, countRows, type RowsTensor } from "../elementwise/rows.ts";

/** Which transform. Every dimension has one: where no Hadamard matrix of it can be built, it is made of blocks (`hadamardBlocks`). */
export interface HadamardSpec {
  readonly dim: number;
  /** Rows become H^T row instead of H row, which undoes it. */
  readonly inverse?: boolean;
}

/** x, out: [rows, dim] f32; `out` may be `x` itself. `numRows` defaults to the rows of `x`. */
export interface HadamardArgs {
  readonly x: RowsTensor;
  readonly out: RowsTensor;
  readonly numRows?: number;
}

/** Row count and strides (in elements) of a call that passed its checks. */
export interface CheckedHadamard {
  readonly numRows: number;
  readonly xStride: number;
  readonly outStride: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkHadamard({ dim }: HadamardSpec, { x, out, numRows: given }: HadamardArgs): CheckedHadamard {
  checkPositive("dim", dim);
  const numRows = countRows(given, x);
  return {
    numRows,
    xStride: checkRows("x", x, numRows, dim),
    outStride: checkWrittenRows("out", out, numRows, dim),
  };
}
