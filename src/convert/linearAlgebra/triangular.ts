/** Cholesky's factorisation, and products and solutions with the lower triangular matrix that it gives. */
import { ShapeError } from "../../tensor/index.ts";
import { addScaled, dot, type Matrix, row, zeros } from "./matrix.ts";

/**
 * The lower triangular s with s s^T = a, for a symmetric matrix of which the lower half is read. Undefined if a is not positive definite to
 * rounding: a pivot of less than dim * epsilon of its diagonal element is a difference of rounding errors, whatever its sign.
 */
export function cholesky(a: Matrix): Matrix | undefined {
  requireSquare("cholesky", a);
  const s = zeros(a.rows, a.rows);
  for (let i = 0; i < a.rows; i++) {
    const si = row(s, i);
    for (let j = 0; j < i; j++) {
      const sj = row(s, j);
      si[j] = (a.values[i * a.columns + j] - dot(si, sj, j)) / sj[j];
    }
    const diagonal = a.values[i * a.columns + i];
    const pivot = diagonal - dot(si, si, i);
    if (!(pivot > a.rows * Number.EPSILON * diagonal)) return undefined;
    si[i] = Math.sqrt(pivot);
  }
  return s;
}

/** b s for a lower triangular s. */
export function timesLower(b: Matrix, s: Matrix): Matrix {
  requireFit("timesLower", b, s);
  const result = zeros(b.rows, b.columns);
  for (let i = 0; i < b.rows; i++) {
    const sums = row(result, i);
    for (let k = 0; k < s.rows; k++) addScaled(sums, b.values[i * b.columns + k], row(s, k), k + 1);
  }
  return result;
}

/** b s^-1, the x with x s = b, for a lower triangular s without a zero on its diagonal. */
export function solveLower(b: Matrix, s: Matrix): Matrix {
  requireFit("solveLower", b, s);
  const x: Matrix = { ...b, values: b.values.slice() };
  for (let i = 0; i < b.rows; i++) {
    const xi = row(x, i);
    for (let k = s.rows - 1; k >= 0; k--) {
      const sk = row(s, k);
      xi[k] /= sk[k];
      addScaled(xi, -xi[k], sk, k);
    }
  }
  return x;
}

/** Throws ShapeError unless the matrix is square. */
export function requireSquare(name: string, { rows, columns }: Matrix): void {
  if (rows !== columns) throw new ShapeError(`${name} needs a square matrix, got shape [${rows}, ${columns}]`);
}

function requireFit(name: string, b: Matrix, s: Matrix): void {
  requireSquare(name, s);
  if (b.columns !== s.rows) {
    throw new ShapeError(`${name}: b must have ${s.rows} columns as the triangular matrix has rows, got ${b.columns}`);
  }
}
