/** The element-wise operations by their definitions, in float64 on contiguous rows. */

/** out[r, i] = x[r, i] + y[r, i]. */
export function add(x: ArrayLike<number>, y: ArrayLike<number>): Float64Array {
  return Float64Array.from(x, (value, i) => value + y[i]);
}

/** out[r, i] = x[r, i] * y[r, i]. */
export function multiply(x: ArrayLike<number>, y: ArrayLike<number>): Float64Array {
  return Float64Array.from(x, (value, i) => value * y[i]);
}

/** out[r, i] = x[r, i] + bias[i]; x: [rows, bias.length]. */
export function addBias(x: ArrayLike<number>, bias: ArrayLike<number>): Float64Array {
  return Float64Array.from(x, (value, i) => value + bias[i % bias.length]);
}

/** out[r, i] = x[r, i] * factor. */
export function scale(x: ArrayLike<number>, factor: number): Float64Array {
  return Float64Array.from(x, (value) => value * factor);
}
