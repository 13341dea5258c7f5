/**
 * Absorption into the weights themselves, on the host: W_UQ W_UK^T and W_UV W_O as matrices (DeepSeek-V2, arXiv 2405.04434). They save two
 * products a step and take 3.5 times the memory, so that layers rather absorb at run time; these are for comparison and for small layers.
 */
import { ShapeError } from "../../tensor/index.ts";
import { kvBProjRows, type MlaDims, validateMlaDims } from "./dims.ts";

/**
 * W_UQ_UK [numHeads * kvLoraRank, q rank]: applied to the normed query latent it gives absorbed queries. Sums are in float64.
 *
 * @param qBProj [numHeads * (qkNopeHeadDim + qkRopeHeadDim), q rank]; its rope rows stay what they are and are left out. Layers without
 *   q latent give their q_proj.
 * @param kvBProj [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank]
 */
export function absorbIntoQueries(shape: MlaDims, qBProj: ArrayLike<number>, kvBProj: ArrayLike<number>): Float32Array {
  validateMlaDims(shape);
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = shape;
  const qRank = rowLength("qBProj", qBProj, numHeads * (qkNopeHeadDim + qkRopeHeadDim));
  requireSize("kvBProj", kvBProj, kvBProjRows(shape), kvLoraRank);
  const absorbed = new Float32Array(numHeads * kvLoraRank * qRank);
  const sums = new Float64Array(qRank);
  for (let head = 0; head < numHeads; head++) {
    for (let c = 0; c < kvLoraRank; c++) {
      sums.fill(0);
      for (let d = 0; d < qkNopeHeadDim; d++) {
        const key = kvBProj[(head * (qkNopeHeadDim + vHeadDim) + d) * kvLoraRank + c];
        const query = (head * (qkNopeHeadDim + qkRopeHeadDim) + d) * qRank;
        for (let r = 0; r < qRank; r++) sums[r] += key * qBProj[query + r];
      }
      absorbed.set(sums, (head * kvLoraRank + c) * qRank);
    }
  }
  return absorbed;
}

/**
 * W_UV_O [hidden size, numHeads * kvLoraRank]: applied to the latent outputs of all heads it gives the layer's output. Sums are in float64.
 *
 * @param kvBProj [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank]
 * @param oProj [hidden size, numHeads * vHeadDim]
 */
export function absorbIntoOutput(shape: MlaDims, kvBProj: ArrayLike<number>, oProj: ArrayLike<number>): Float32Array {
  validateMlaDims(shape);
  const { numHeads, kvLoraRank, qkNopeHeadDim, vHeadDim } = shape;
  requireSize("kvBProj", kvBProj, kvBProjRows(shape), kvLoraRank);
  const width = numHeads * vHeadDim;
  const hiddenSize = columnLength("oProj", oProj, width);
  const absorbed = new Float32Array(hiddenSize * numHeads * kvLoraRank);
  const sums = new Float64Array(kvLoraRank);
  for (let row = 0; row < hiddenSize; row++) {
    for (let head = 0; head < numHeads; head++) {
      sums.fill(0);
      for (let d = 0; d < vHeadDim; d++) {
        const output = oProj[row * width + head * vHeadDim + d];
        const value = (head * (qkNopeHeadDim + vHeadDim) + qkNopeHeadDim + d) * kvLoraRank;
        for (let c = 0; c < kvLoraRank; c++) sums[c] += output * kvBProj[value + c];
      }
      absorbed.set(sums, (row * numHeads + head) * kvLoraRank);
    }
  }
  return absorbed;
}

function rowLength(name: string, matrix: ArrayLike<number>, rows: number): number {
  if (matrix.length > 0 && matrix.length % rows === 0) return matrix.length / rows;
  throw new ShapeError(`${name} must have ${rows} rows, got ${matrix.length} elements`);
}

function columnLength(name: string, matrix: ArrayLike<number>, columns: number): number {
  if (matrix.length > 0 && matrix.length % columns === 0) return matrix.length / columns;
  throw new ShapeError(`${name} must have ${columns} columns, got ${matrix.length} elements`);
}

function requireSize(name: string, matrix: ArrayLike<number>, rows: number, columns: number): void {
  if (matrix.length === rows * columns) return;
  throw new ShapeError(`${name} must have ${rows} rows of ${columns}, got ${matrix.length} elements`);
}
