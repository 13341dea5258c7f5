/**
 * Integer arrays that the originals take as device arrays and Kvasir takes on the host: lengths, offsets, page tables. Their shapes and
 * types are checked as the originals check them.
 */
import { ArgumentError, formatShape, ShapeError } from "../tensor/index.ts";

/** A row-major matrix of page ids: [sequences, pagesPerSeq]. */
export interface PageTable {
  readonly values: Int32Array;
  readonly shape: readonly [number, number];
}

/** Throws ArgumentError unless the array is an Int32Array, ShapeError unless it has this length (`why` says where that comes from). */
export function requireInt32(name: string, array: Int32Array, length?: number, why = ""): void {
  // Types are stripped in plain JavaScript, and another array would be read as other numbers without a word.
  if (!(array instanceof Int32Array)) {
    throw new ArgumentError(`${name} must be an Int32Array, got ${Object.prototype.toString.call(array).slice(8, -1)}`);
  }
  if (length === undefined || array.length === length) return;
  throw new ShapeError(`${name}.length = ${array.length} must be ${length}${why}`);
}

/** Throws ArgumentError or ShapeError unless the table is an Int32Array of its shape. */
export function requirePageTable(name: string, { values, shape }: PageTable): void {
  requireInt32(`${name}.values`, values);
  if (shape.length === 2 && values.length === shape[0] * shape[1]) return;
  throw new ShapeError(
    `${name}.shape = ${formatShape(shape)} must be [sequences, pagesPerSeq] of its ${values.length} values`,
  );
}
