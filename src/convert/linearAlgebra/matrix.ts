/**
 * Dense matrices of float64, and the few things the conversions do to them: products, transposes, norms. Factorisations are in files of
 * their own. Loops run along rows, because that is how the numbers lie in memory.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";

/** Row-major: element (i, j) is values[i * columns + j]. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly values: Float64Array;
}

/** A matrix of zeros. */
export function zeros(rows: number, columns: number): Matrix {
  return { rows, columns, values: new Float64Array(rows * columns) };
}

/** A float64 copy of row-major `values`. Throws ShapeError if their number is wrong, ArgumentError if one is not finite. */
export function matrixFrom(rows: number, columns: number, values: ArrayLike<number>): Matrix {
  if (values.length !== rows * columns) {
    throw new ShapeError(
      `a matrix of shape [${rows}, ${columns}] needs ${rows * columns} values, got ${values.length}`,
    );
  }
  const copy = Float64Array.from(values);
  const bad = copy.findIndex((value) => !Number.isFinite(value));
  if (bad >= 0) {
    throw new ArgumentError(
      `matrix element [${Math.floor(bad / columns)}, ${bad % columns}] = ${copy[bad]} must be finite`,
    );
  }
  return { rows, columns, values: copy };
}

/** Row i, as a view. */
export function row({ columns, values }: Matrix, i: number): Float64Array {
  return values.subarray(i * columns, (i + 1) * columns);
}

/** Rows begin up to end (not included), as a view. */
export function rowsOf({ columns, values }: Matrix, begin: number, end: number): Matrix {
  return { rows: end - begin, columns, values: values.subarray(begin * columns, end * columns) };
}

export function transpose(a: Matrix): Matrix {
  const result = zeros(a.columns, a.rows);
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < a.columns; j++) result.values[j * a.rows + i] = a.values[i * a.columns + j];
  }
  return result;
}

/** a b. Throws ShapeError if a has not as many columns as b has rows. */
export function multiply(a: Matrix, b: Matrix): Matrix {
  requireInner("multiply", a.columns, b.rows);
  const result = zeros(a.rows, b.columns);
  for (let i = 0; i < a.rows; i++) {
    const sums = row(result, i);
    for (let k = 0; k < a.columns; k++) addScaled(sums, a.values[i * a.columns + k], row(b, k));
  }
  return result;
}

/**
 * sum += x^T x for rows x [n, dim]: the second moments of a layer's inputs, batch by batch. `sum` must be symmetric: only its lower half is
 * read. Throws ShapeError if x has not as many columns as sum has rows and columns.
 */
export function addGram(sum: Matrix, x: Matrix): void {
  const dim = x.columns;
  requireInner("addGram", dim, sum.rows);
  requireInner("addGram", dim, sum.columns);
  for (let n = 0; n < x.rows; n++) {
    const sample = row(x, n);
    for (let i = 0; i < dim; i++) addScaled(row(sum, i), sample[i], sample, i + 1);
  }
  for (let i = 0; i < dim; i++) {
    for (let j = i + 1; j < dim; j++) sum.values[i * dim + j] = sum.values[j * dim + i];
  }
}

/** a - b. Throws ShapeError if their shapes differ. */
export function subtract(a: Matrix, b: Matrix): Matrix {
  requireInner("subtract", a.rows, b.rows);
  requireInner("subtract", a.columns, b.columns);
  return { ...a, values: a.values.map((value, i) => value - b.values[i]) };
}

/** The square root of the sum of all squares. */
export function frobeniusNorm({ values }: Matrix): number {
  return norm(values);
}

/** The Euclidean length of a vector. */
export function norm(values: Float64Array): number {
  return Math.sqrt(dot(values, values));
}

/** Sum of a[i] b[i] over the first `length` elements, in four sums: a processor need not wait for one addition to begin the next. */
export function dot(a: Float64Array, b: Float64Array, length = a.length): number {
  let [s0, s1, s2, s3] = [0, 0, 0, 0];
  const whole = length - (length % 4);
  for (let i = 0; i < whole; i += 4) {
    s0 += a[i] * b[i];
    s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2];
    s3 += a[i + 3] * b[i + 3];
  }
  for (let i = whole; i < length; i++) s0 += a[i] * b[i];
  return s0 + s1 + (s2 + s3);
}

/** y += factor x for the first `length` elements. */
export function addScaled(y: Float64Array, factor: number, x: Float64Array, length = x.length): void {
  for (let i = 0; i < length; i++) y[i] += factor * x[i];
}

function requireInner(name: string, got: number, wanted: number): void {
  if (got !== wanted) throw new ShapeError(`${name}: the matrices do not fit together, ${got} against ${wanted}`);
}
