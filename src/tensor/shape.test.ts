import { expect, it } from "vitest";
import { elementBytes, elementTypes } from "./elementTypes.ts";
import { KvasirError, ShapeError } from "./errors.ts";
import { formatShape, numElements, requireShape, sameShape } from "./shape.ts";

it("counts and compares shapes", () => {
  expect(numElements([2, 3, 4])).toBe(24);
  expect(numElements([])).toBe(1);
  expect(sameShape([2, 3], [2, 3])).toBe(true);
  expect(sameShape([2, 3], [3, 2])).toBe(false);
  expect(sameShape([2], [2, 1])).toBe(false);
  expect(formatShape([2, 64])).toBe("[2, 64]");
});

it("names the tensor of a wrong shape", () => {
  expect(() => requireShape("weight", [63], [64])).toThrow("weight must have shape [64], got [63]");
  expect(() => requireShape("weight", [64], [64])).not.toThrow();
});

it("has errors that can be told apart", () => {
  const error = new ShapeError("x");
  expect(error).toBeInstanceOf(KvasirError);
  expect(error.name).toBe("ShapeError");
});

it("knows the size of every element type", () => {
  expect(elementTypes.map(elementBytes)).toEqual([8, 4, 2, 2, 1, 1, 4, 4, 2, 2, 1, 1]);
});
