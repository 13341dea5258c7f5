/** Householder reflections: a wide matrix to lower triangular form, with rows exchanged so that the diagonal falls. */
import { addScaled, dot, type Matrix, norm, row, zeros } from "./matrix.ts";

/** P a = lower q, where q = first rows of H_(n-1) ... H_1 H_0, and H_k = 1 - v_k v_k^T for row v_k of `reflectors`. */
export interface Triangular {
  /** [n, n], zero above the diagonal. */
  readonly lower: Matrix;
  /** [n, columns]: each v has squared length 2, or is zero where there was nothing to reflect. */
  readonly reflectors: Matrix;
  /** Row p of P a is row order[p] of a. */
  readonly order: Int32Array;
}

/** For a matrix with at most as many rows as columns. The longest remaining row comes first at each step. */
export function triangularise(a: Matrix): Triangular {
  const n = a.rows;
  const work: Matrix = { ...a, values: a.values.slice() };
  const order = Int32Array.from({ length: n }, (_, i) => i);
  const reflectors = zeros(n, a.columns);
  for (let k = 0; k < n; k++) {
    const longest = longestRest(work, k);
    if (longest !== k) {
      exchange(row(work, k), row(work, longest));
      [order[k], order[longest]] = [order[longest], order[k]];
    }
    const v = row(reflectors, k).subarray(k);
    const target = row(work, k).subarray(k);
    const length = norm(target);
    if (length === 0) continue;
    // The reflection sends the rest of row k to -sign(first) length e_0, so that the first element of v does not cancel.
    const diagonal = target[0] > 0 ? -length : length;
    v.set(target);
    v[0] -= diagonal;
    const unit = Math.SQRT2 / norm(v);
    for (let i = 0; i < v.length; i++) v[i] *= unit;
    target.fill(0);
    target[0] = diagonal;
    for (let i = k + 1; i < n; i++) reflect(row(work, i).subarray(k), v);
  }
  const lower = zeros(n, n);
  for (let i = 0; i < n; i++) row(lower, i).set(row(work, i).subarray(0, n));
  return { lower, reflectors, order };
}

/** rows = rows H_(n-1) ... H_0, in place: with [J 0] as rows, J q. */
export function reflectRows(rows: Matrix, reflectors: Matrix): void {
  for (let k = reflectors.rows - 1; k >= 0; k--) {
    const v = row(reflectors, k).subarray(k);
    for (let i = 0; i < rows.rows; i++) reflect(row(rows, i).subarray(k), v);
  }
}

function reflect(x: Float64Array, v: Float64Array): void {
  addScaled(x, -dot(x, v), v);
}

/** Lengths are computed anew at each step: subtracting what was reflected away would lose the small ones. */
function longestRest(work: Matrix, k: number): number {
  let longest = k;
  let largest = -1;
  for (let i = k; i < work.rows; i++) {
    const rest = row(work, i).subarray(k);
    const square = dot(rest, rest);
    if (square <= largest) continue;
    largest = square;
    longest = i;
  }
  return longest;
}

function exchange(x: Float64Array, y: Float64Array): void {
  const copy = x.slice();
  x.set(y);
  y.set(copy);
}
