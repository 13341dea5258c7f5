/**
 * Singular value decomposition by one-sided Jacobi rotations: rows are turned in pairs until all are orthogonal; their lengths are the
 * singular values. Simple, and accurate for the small singular values too. A pivoted triangular factorisation first makes the matrix
 * square and nearly orthogonal, which saves most of the sweeps (Drmac & Veselic 2008).
 */
import { KvasirError } from "../../tensor/index.ts";
import { reflectRows, triangularise } from "./householder.ts";
import { dot, type Matrix, norm, row, transpose, zeros } from "./matrix.ts";

/** a = u diag(singularValues) vt, with k = min(rows, columns). */
export interface Svd {
  /** [rows, k], orthonormal columns. */
  readonly u: Matrix;
  /** [k], falling. */
  readonly singularValues: Float64Array;
  /** [k, columns], orthonormal rows. */
  readonly vt: Matrix;
}

const MAX_SWEEPS = 40;

/**
 * The decomposition of any finite matrix. Where singular values are exactly 0, either the columns of u or the rows of vt that belong to
 * them are zeros. A square of 512 takes a few seconds.
 */
export function svd(a: Matrix): Svd {
  if (a.rows > a.columns) {
    const { u, singularValues, vt } = svd(transpose(a));
    return { u: transpose(vt), singularValues, vt: transpose(u) };
  }
  const scale = powerOfTwo(a.values);
  const scaled: Matrix = { ...a, values: a.values.map((value) => value / scale) };
  // P A = L Q, and J L^T = diag(s) Z^T by rotations J of the rows of L^T; so A = (P^T Z) diag(s) (J Q).
  const { lower, reflectors, order } = triangularise(scaled);
  const rows = transpose(lower);
  const turned = identity(a.rows, a.columns);
  orthogonaliseRows(rows, turned, a.rows);
  reflectRows(turned, reflectors);

  const lengths = Float64Array.from({ length: a.rows }, (_, i) => norm(row(rows, i)));
  const falling = [...lengths.keys()].sort((i, j) => lengths[j] - lengths[i]);
  const u = zeros(a.rows, a.rows);
  const vt = zeros(a.rows, a.columns);
  for (const [k, i] of falling.entries()) {
    row(vt, k).set(row(turned, i));
    if (lengths[i] === 0) continue;
    const z = row(rows, i);
    for (let p = 0; p < a.rows; p++) u.values[order[p] * a.rows + k] = z[p] / lengths[i];
  }
  return { u, singularValues: Float64Array.from(falling, (i) => lengths[i] * scale), vt };
}

/** Turns pairs of rows until all are orthogonal to rounding, and the first `width` columns of `partner` with them. */
function orthogonaliseRows(rows: Matrix, partner: Matrix, width: number): void {
  const tolerance = Number.EPSILON * Math.sqrt(rows.columns);
  const views = Array.from({ length: rows.rows }, (_, i) => row(rows, i));
  const partners = Array.from({ length: rows.rows }, (_, i) => row(partner, i).subarray(0, width));
  const squares = new Float64Array(rows.rows);
  for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
    let turns = 0;
    for (let i = 0; i < rows.rows; i++) squares[i] = dot(views[i], views[i]);
    for (let i = 0; i < rows.rows; i++) {
      for (let j = i + 1; j < rows.rows; j++) {
        const overlap = dot(views[i], views[j]);
        if (!(Math.abs(overlap) > tolerance * Math.sqrt(squares[i]) * Math.sqrt(squares[j]))) continue;
        turns++;
        const cotangent = (squares[j] - squares[i]) / (2 * overlap);
        const tangent = Math.sign(cotangent || 1) / (Math.abs(cotangent) + Math.sqrt(1 + cotangent * cotangent));
        const cosine = 1 / Math.sqrt(1 + tangent * tangent);
        turn(views[i], views[j], cosine, cosine * tangent);
        turn(partners[i], partners[j], cosine, cosine * tangent);
        squares[i] = shortened(squares[i], tangent * overlap, views[i]);
        squares[j] = shortened(squares[j], -tangent * overlap, views[j]);
      }
    }
    if (turns === 0) return;
  }
  throw new KvasirError(
    `the singular values of a ${rows.rows} x ${rows.columns} matrix did not settle in ${MAX_SWEEPS} sweeps`,
  );
}

/**
 * (x, y) becomes (cosine x - sine y, sine x + cosine y), written as small changes to x and y so that thousands of small turns do not add up
 * to a change of length (Rutishauser 1966).
 */
function turn(x: Float64Array, y: Float64Array, cosine: number, sine: number): void {
  const half = sine / (1 + cosine); // the tangent of half the angle
  for (let i = 0; i < x.length; i++) {
    const xi = x[i];
    const yi = y[i];
    x[i] = xi - sine * (yi + half * xi);
    y[i] = yi + sine * (xi - half * yi);
  }
}

/** The squared length of a row that lost `loss` of it: computed anew where little is left, and the difference is mostly rounding. */
function shortened(square: number, loss: number, x: Float64Array): number {
  return square - loss > square / 16 ? square - loss : dot(x, x);
}

/** Ones on the diagonal of the left square of a wide matrix. */
function identity(rows: number, columns: number): Matrix {
  const result = zeros(rows, columns);
  for (let i = 0; i < rows; i++) result.values[i * columns + i] = 1;
  return result;
}

/** The power of two next to the largest value: a division by it rounds nothing, and squares neither overflow nor vanish. */
function powerOfTwo(values: Float64Array): number {
  const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  return largest === 0 ? 1 : 2 ** Math.floor(Math.log2(largest));
}
