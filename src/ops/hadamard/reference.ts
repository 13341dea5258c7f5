/** The Hadamard transform by its definition: a product with the matrix, in float64. */
import { hadamardMatrix } from "./construction.ts";
import type { HadamardSpec } from "./contract.ts";

/** x: [rows, dim]. Returns [rows, dim]: H times each row, or H^T times it. */
export function hadamardTransform({ dim, inverse = false }: HadamardSpec, x: ArrayLike<number>): Float64Array {
  const matrix = hadamardMatrix(dim);
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += dim) {
    for (let i = 0; i < dim; i++) {
      let sum = 0;
      for (let j = 0; j < dim; j++) sum += matrix[inverse ? j * dim + i : i * dim + j] * x[row + j];
      out[row + i] = sum;
    }
  }
  return out;
}
