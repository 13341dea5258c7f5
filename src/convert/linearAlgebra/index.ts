/** The linear algebra of the conversions: dense, float64, on one thread. Only re-exports. */

export { smallestEigenvalue } from "./eigenvalues.ts";
export {
  addGram,
  frobeniusNorm,
  type Matrix,
  matrixFrom,
  multiply,
  norm,
  rowsOf,
  subtract,
  transpose,
  zeros,
} from "./matrix.ts";
export { type Svd, svd } from "./svd.ts";
export { cholesky, requireSquare, solveLower, timesLower } from "./triangular.ts";
