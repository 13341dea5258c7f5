/**
 * The smallest eigenvalue of a symmetric matrix: reflections make it tridiagonal, then its place is bisected by counting the eigenvalues
 * below a number (Sturm sequences). No eigenvectors.
 */
import { addScaled, dot, type Matrix, norm, row } from "./matrix.ts";
import { requireSquare } from "./triangular.ts";

/** To rounding relative to the largest eigenvalue. Throws ShapeError unless `a` is square. Reads both halves. */
export function smallestEigenvalue(a: Matrix): number {
  requireSquare("smallestEigenvalue", a);
  const { diagonal, beside } = tridiagonalise(a);
  // Gershgorin: every eigenvalue is within the sum of its neighbours of a diagonal element.
  const reach = diagonal.map((_, i) => Math.abs(beside[i - 1] ?? 0) + Math.abs(beside[i] ?? 0));
  let low = Math.min(...diagonal.map((value, i) => value - reach[i]));
  let high = Math.min(...diagonal);
  if (countBelow(diagonal, beside, high) === 0) return high;
  const tiniest = Number.EPSILON * Math.max(Math.abs(low), ...diagonal.map((value, i) => Math.abs(value) + reach[i]));
  while (high - low > tiniest) {
    const middle = (low + high) / 2;
    if (middle <= low || middle >= high) break;
    if (countBelow(diagonal, beside, middle) > 0) high = middle;
    else low = middle;
  }
  return (low + high) / 2;
}

interface Tridiagonal {
  /** [n] */
  readonly diagonal: Float64Array;
  /** [n - 1] */
  readonly beside: Float64Array;
}

/** Householder: each step clears a row and its column beyond their neighbour of the diagonal. */
function tridiagonalise(a: Matrix): Tridiagonal {
  const n = a.rows;
  const work: Matrix = { ...a, values: a.values.slice() };
  const beside = new Float64Array(Math.max(0, n - 1));
  for (let k = 0; k < n - 1; k++) {
    const v = row(work, k).slice(k + 1);
    const length = norm(v);
    if (length === 0) continue;
    beside[k] = v[0] > 0 ? -length : length;
    v[0] -= beside[k];
    const unit = Math.SQRT2 / norm(v);
    for (let i = 0; i < v.length; i++) v[i] *= unit;
    reflectBothSides(work, k + 1, v);
  }
  return { diagonal: Float64Array.from({ length: n }, (_, i) => work.values[i * n + i]), beside };
}

/** The square from (begin, begin) on becomes H A H, H = 1 - v v^T: A - v w^T - w v^T with w = A v - (v . A v / 2) v. */
function reflectBothSides(work: Matrix, begin: number, v: Float64Array): void {
  const w = Float64Array.from(v, (_, i) => dot(row(work, begin + i).subarray(begin), v));
  addScaled(w, -dot(w, v) / 2, v);
  for (let i = 0; i < v.length; i++) {
    const rest = row(work, begin + i).subarray(begin);
    addScaled(rest, -v[i], w);
    addScaled(rest, -w[i], v);
  }
}

/** How many eigenvalues are less than x: the negative pivots of T - x = L D L^T. */
function countBelow(diagonal: Float64Array, beside: Float64Array, x: number): number {
  let count = 0;
  let pivot = 1;
  for (let i = 0; i < diagonal.length; i++) {
    const square = i === 0 ? 0 : beside[i - 1] * beside[i - 1];
    pivot = diagonal[i] - x - (square === 0 ? 0 : square / pivot);
    // A pivot of 0 means that x is an eigenvalue of a leading part; the smallest number beside it decides the same for the whole.
    if (pivot === 0) pivot = -Number.MIN_VALUE;
    if (pivot < 0) count++;
  }
  return count;
}
