/**
 * Whitening of a layer's inputs: a factor S with S S^T = sum of x x^T over calibration inputs, so that ||(W - L R) S|| is the error that
 * these inputs see. Source: Chang et al. 2024 (Palu, arXiv 2407.21118); the idea is SVD-LLM's (arXiv 2403.07378).
 */
import { ArgumentError } from "../../tensor/index.ts";
import { cholesky, type Matrix, requireSquare, smallestEigenvalue } from "../linearAlgebra/index.ts";

export interface Whitening {
  /** S: [inFeatures, inFeatures], lower triangular. */
  readonly factor: Matrix;
  /** What was added to the diagonal to make the moments positive definite; 0 where nothing was needed. */
  readonly shift: number;
}

/** Where too few calibration inputs leave the moments singular, the smallest eigenvalue is raised to this. */
const LEAST_EIGENVALUE = 1e-3;

/**
 * `moments`: sum of x x^T over the calibration inputs of a layer, [inFeatures, inFeatures] (see `addGram`); its keys and values share it.
 * Throws ShapeError if it is not square, ArgumentError if it is not symmetric.
 */
export function whiten(moments: Matrix): Whitening {
  requireSymmetric(moments);
  const factor = cholesky(moments);
  if (factor) return { factor, shift: 0 };
  const shift = LEAST_EIGENVALUE - smallestEigenvalue(moments);
  const values = moments.values.slice();
  for (let i = 0; i < moments.rows; i++) values[i * moments.columns + i] += shift;
  const shifted = cholesky({ ...moments, values });
  if (!shifted) {
    throw new ArgumentError(
      `moments must be positive definite with ${shift} added to their diagonal, but that is lost in rounding: divide all inputs by a constant first`,
    );
  }
  return { factor: shifted, shift };
}

/** Half a matrix, or the sum of inputs of another layer, would pass Cholesky's factorisation, which reads the lower half. */
function requireSymmetric(moments: Matrix): void {
  requireSquare("whiten", moments);
  const { rows, columns, values } = moments;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < i; j++) {
      const [below, above] = [values[i * columns + j], values[j * columns + i]];
      if (Math.abs(below - above) <= 1e-6 * Math.sqrt(values[i * columns + i] * values[j * columns + j])) continue;
      throw new ArgumentError(`moments must be symmetric, got [${i}, ${j}] = ${below} and [${j}, ${i}] = ${above}`);
    }
  }
}
