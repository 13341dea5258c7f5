/** Shapes: row-major, outermost dimension first. Only counting and comparing; strides belong to whoever needs them. */

import { ShapeError } from "./errors.ts";

/** Sizes of the dimensions, outermost first. The empty shape is one element. */
export type Shape = readonly number[];

/** Number of elements of a tensor of `shape`. */
export function numElements(shape: Shape): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Whether two shapes have the same dimensions. */
export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}

/** `[2, 64]`: a shape as error messages write it. */
export function formatShape(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}

/** Throws ShapeError unless the tensor called `name` has the shape `expected`. */
export function requireShape(name: string, shape: Shape, expected: Shape): void {
  if (!sameShape(shape, expected)) {
    throw new ShapeError(`${name} must have shape ${formatShape(expected)}, got ${formatShape(shape)}`);
  }
}
