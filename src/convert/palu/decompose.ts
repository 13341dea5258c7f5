/**
 * The low-rank factors of a key or value projection: each group of its rows becomes up [groupDim, rank] times down [rank, inFeatures]. The
 * cache then holds down . x instead of the keys or values. Ranks are rankSearch.ts's, calibration is whitening.ts's.
 * Source: Chang et al. 2024 (Palu, arXiv 2407.21118).
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import {
  frobeniusNorm,
  type Matrix,
  multiply,
  norm,
  rowsOf,
  solveLower,
  subtract,
  svd,
  timesLower,
} from "../linearAlgebra/index.ts";
import type { Whitening } from "./whitening.ts";

export interface DecomposeOptions {
  /** Groups of rows of equal size: numKvHeads of them is M-LRD, 1 is J-LRD, between is G-LRD. */
  readonly numGroups: number;
  /** [numGroups], each from 1 to min(groupDim, inFeatures): beyond that there is nothing to keep. */
  readonly ranks: readonly number[];
  /** Minimise the error on these inputs; without it, that of the weight itself. */
  readonly whitening?: Whitening;
}

/** W_g ~ up down for one group of rows. */
export interface LowRankGroup {
  /** U sqrt(Sigma): [groupDim, rank]. */
  readonly up: Matrix;
  /** sqrt(Sigma) V^T S^-1, S the whitening factor or 1: [rank, inFeatures]. */
  readonly down: Matrix;
  /** All of W_g S, falling: [min(groupDim, inFeatures)]. */
  readonly singularValues: Float64Array;
  /** ||W_g - up down||, Frobenius. */
  readonly error: number;
  /** ||(W_g - up down) S||: the least that any factors of this rank can have. Equal to the length of the dropped singular values. */
  readonly whitenedError: number;
}

/**
 * One LowRankGroup for each group of rows of `weight` [numGroups * groupDim, inFeatures]. Throws ArgumentError if the groups or ranks do not
 * fit it, ShapeError if the whitening belongs to inputs of another size.
 */
export function decompose(weight: Matrix, options: DecomposeOptions): LowRankGroup[] {
  const { numGroups, ranks, whitening } = options;
  validate(weight, options);
  const groupDim = weight.rows / numGroups;
  return ranks.map((rank, g) =>
    decomposeGroup(rowsOf(weight, g * groupDim, (g + 1) * groupDim), rank, whitening?.factor),
  );
}

function decomposeGroup(group: Matrix, rank: number, factor: Matrix | undefined): LowRankGroup {
  const { u, singularValues, vt } = svd(factor ? timesLower(group, factor) : group);
  const roots = singularValues.subarray(0, rank).map(Math.sqrt);
  const up = scaled(u, group.rows, rank, (_, k) => roots[k]);
  const right = scaled(vt, rank, group.columns, (k) => roots[k]);
  const down = factor ? solveLower(right, factor) : right;
  const error = frobeniusNorm(subtract(group, multiply(up, down)));
  return { up, down, singularValues, error, whitenedError: norm(singularValues.subarray(rank)) };
}

/** The top left part of a matrix, element by element times a factor. */
function scaled(a: Matrix, rows: number, columns: number, factor: (i: number, j: number) => number): Matrix {
  const values = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) values[i * columns + j] = a.values[i * a.columns + j] * factor(i, j);
  }
  return { rows, columns, values };
}

function validate({ rows, columns }: Matrix, { numGroups, ranks, whitening }: DecomposeOptions): void {
  if (!Number.isInteger(numGroups) || numGroups < 1 || rows % numGroups !== 0) {
    throw new ArgumentError(`numGroups must divide the ${rows} rows of weight, got ${numGroups}`);
  }
  if (ranks.length !== numGroups) {
    throw new ArgumentError(`ranks must have numGroups = ${numGroups} entries, got ${ranks.length}`);
  }
  const largest = Math.min(rows / numGroups, columns);
  for (const [g, rank] of ranks.entries()) {
    if (Number.isInteger(rank) && rank >= 1 && rank <= largest) continue;
    throw new ArgumentError(
      `ranks[${g}] must be an integer from 1 to min(groupDim, inFeatures) = ${largest}, got ${rank}`,
    );
  }
  if (whitening && whitening.factor.rows !== columns) {
    throw new ShapeError(`whitening is for ${whitening.factor.rows} input features, but weight has ${columns} columns`);
  }
}
