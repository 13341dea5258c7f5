/** How far two results are apart: what a test of a kernel against a reference asserts. */
import { ShapeError } from "../tensor/index.ts";

/**
 * The largest |actual - expected| of all elements; 0 where both are the same infinity, as LSEs of rows without keys are. Infinity where one
 * is NaN, or only one infinite: whatever the bound, such a result is above it. Throws ShapeError for arrays of different length.
 */
export function largestDifference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) {
    throw new ShapeError(`actual must have the ${expected.length} elements of expected, got ${actual.length}`);
  }
  let largest = 0;
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] === expected[i]) continue;
    const difference = Math.abs(actual[i] - expected[i]);
    largest = Math.max(largest, Number.isNaN(difference) ? Infinity : difference);
  }
  return largest;
}
