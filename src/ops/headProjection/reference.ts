/** The definition of the products of every head with its matrix, in float64 on contiguous arrays. */
import type { HeadProjectionSpec } from "./contract.ts";

/**
 * x: [tokens, numHeads, inputs]; weight: [any rows, columns], the matrix of head h from row `firstRow + h * headRows` on. Returns
 * [tokens, numHeads, outputs].
 */
export function headProjection(
  { kind, rows, columns }: HeadProjectionSpec,
  numHeads: number,
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  firstRow = 0,
  headRows = rows,
): Float64Array {
  const [inputs, outputs] = kind === "absorb" ? [rows, columns] : [columns, rows];
  const out = new Float64Array((x.length / inputs) * outputs);
  for (let vector = 0; vector < x.length / inputs; vector++) {
    const head = vector % numHeads;
    for (let r = 0; r < rows; r++) {
      const row = (firstRow + head * headRows + r) * columns;
      for (let column = 0; column < columns; column++) {
        if (kind === "absorb") out[vector * outputs + column] += x[vector * inputs + r] * weight[row + column];
        else out[vector * outputs + r] += weight[row + column] * x[vector * inputs + column];
      }
    }
  }
  return out;
}
