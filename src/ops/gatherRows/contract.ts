/** Gathering rows: out[i] = x[indices[i]]. The few rows of a batch whose logits are wanted, say. */

import { ArgumentError, ShapeError } from "../../tensor/index.ts";

/** Device addresses; x, out: f32 rows of `columns` elements. */
export interface GatherRowsArgs {
  /** f32 [rows, columns] */
  readonly x: number;
  /** i32 [numRows]; the caller sees to it that they are rows of x. */
  readonly indices: number;
  /** f32 [numRows, columns], apart from x. */
  readonly out: number;
  readonly columns: number;
  readonly numRows: number;
}

/** Throws ArgumentError or ShapeError naming the argument that does not fit. */
export function checkGatherRows({ x, indices, out, columns, numRows }: GatherRowsArgs): void {
  if (!Number.isInteger(columns) || columns < 1)
    throw new ShapeError(`columns must be a positive integer, got ${columns}`);
  if (!Number.isInteger(numRows) || numRows < 0) throw new ShapeError(`numRows must be a whole number, got ${numRows}`);
  for (const [name, address] of Object.entries({ x, indices, out })) {
    if (address === 0) throw new ArgumentError(`${name} must be an address, got 0`);
  }
  if (x === out) throw new ArgumentError("out must not be x: a row could be overwritten before it is read");
}
