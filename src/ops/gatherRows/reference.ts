/** out[i] = x[indices[i]], rows of `columns` elements. */
export function gatherRows(x: ArrayLike<number>, columns: number, indices: ArrayLike<number>): Float64Array {
  return Float64Array.from({ length: indices.length * columns }, (_, at) => {
    const row = Math.floor(at / columns);
    return x[indices[row] * columns + (at - row * columns)];
  });
}
