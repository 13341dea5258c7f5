/** The matrix product in float64. */

/** out[t, r] = sum over c of weight[r, c] x[t, c] (+ bias[r]). */
export interface ReferenceMatmul {
  /** [rows, columns] */
  readonly weight: ArrayLike<number>;
  readonly rows: number;
  readonly columns: number;
  /** [numTokens, columns] */
  readonly x: ArrayLike<number>;
  readonly bias?: ArrayLike<number>;
}

/** [numTokens, rows] */
export function matmul({ weight, rows, columns, x, bias }: ReferenceMatmul): Float64Array {
  const numTokens = x.length / columns;
  const out = new Float64Array(numTokens * rows);
  for (let t = 0; t < numTokens; t++) {
    for (let r = 0; r < rows; r++) {
      let sum = bias?.[r] ?? 0;
      for (let c = 0; c < columns; c++) sum += weight[r * columns + c] * x[t * columns + c];
      out[t * rows + r] = sum;
    }
  }
  return out;
}
