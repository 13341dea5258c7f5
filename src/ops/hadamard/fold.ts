/**
 * Folds the Hadamard transform into the two factors of a low-rank weight, so that latents are rotated at no cost while the model runs.
 * Source: Palu (arXiv 2407.21118), section 3.4.
 */
import { ShapeError } from "../../tensor/index.ts";
import { hadamardBlocks, hadamardFactors, hadamardSigns } from "./construction.ts";

/** The two factors of a weight U VT. */
export interface LowRankFactors {
  /** [rank, inFeatures] */
  readonly vt: Float64Array;
  /** [outFeatures, rank] */
  readonly u: Float64Array;
}

/**
 * VT becomes H VT and U becomes U H^T: their product stays, and a latent h becomes H h. To be done once, after truncation to `rank`,
 * for each group and with the group's own rank; any rank has an H (see `hadamardBlocks`).
 *
 * @param vt [rank, inFeatures]
 * @param u [outFeatures, rank], as Palu's checkpoints have it
 */
export function foldHadamard(vt: ArrayLike<number>, u: ArrayLike<number>, rank: number): LowRankFactors {
  for (const [name, factor] of Object.entries({ vt, u })) {
    if (factor.length % rank !== 0) {
      throw new ShapeError(`${name} must have a multiple of rank = ${rank} elements, got ${factor.length}`);
    }
  }
  const inFeatures = vt.length / rank;
  // Columns of VT are latents; rows of U times H^T are H times the rows.
  const columns = transposed(vt, rank, inFeatures);
  const rows = Float64Array.from(u);
  transformRows(columns, rank);
  transformRows(rows, rank);
  return { vt: transposed(columns, inFeatures, rank), u: rows };
}

/** H times each row of `dim` elements, in place: as the kernel does it, since a weight has too many rows for products with H. */
function transformRows(rows: Float64Array, dim: number): void {
  let begin = 0;
  for (const size of hadamardBlocks(dim)) {
    const factor = hadamardFactors(size)?.factor ?? 1;
    const signs = hadamardSigns(factor) ?? Int8Array.of(1);
    const norm = 1 / Math.sqrt(size);
    const piece = new Float64Array(factor);
    for (let at = begin; at < rows.length; at += dim) {
      for (let first = at; first < at + size; first += factor) {
        piece.set(rows.subarray(first, first + factor));
        for (let i = 0; i < factor; i++) {
          let sum = 0;
          for (let j = 0; j < factor; j++) sum += signs[i * factor + j] * piece[j];
          rows[first + i] = sum * norm;
        }
      }
      for (let half = factor; half < size; half *= 2) butterflies(rows, at, at + size, half);
    }
    begin += size;
  }
}

/** Elements `half` apart become their sum and their difference. */
function butterflies(values: Float64Array, begin: number, end: number, half: number): void {
  for (let pair = begin; pair < end; pair += 2 * half) {
    for (let i = pair; i < pair + half; i++) {
      const [low, high] = [values[i], values[i + half]];
      values[i] = low + high;
      values[i + half] = low - high;
    }
  }
}

function transposed(matrix: ArrayLike<number>, rows: number, columns: number): Float64Array {
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) result[j * rows + i] = matrix[i * columns + j];
  return result;
}
