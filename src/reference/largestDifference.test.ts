import { describe, expect, it } from "vitest";
import { largestDifference } from "./index.ts";

describe("largestDifference", () => {
  it("is the largest of all elements, whatever its sign", () => {
    expect(largestDifference([1, 2, 3], [1, 2.5, 2.75])).toBe(0.5);
    expect(largestDifference([], [])).toBe(0);
  });

  it("lets no NaN and no infinity pass, but the same one", () => {
    expect(largestDifference([-Infinity, 1], [-Infinity, 1])).toBe(0);
    for (const [a, b] of [
      [NaN, 1],
      [1, NaN],
      [NaN, NaN],
      [Infinity, -Infinity],
      [1, Infinity],
    ]) {
      expect(largestDifference([0, a], [0, b])).toBe(Infinity);
    }
  });

  it("refuses arrays of different length", () => {
    expect(() => largestDifference([1], [1, 2])).toThrow("actual must have the 2 elements of expected, got 1");
  });
});
