import { describe, expect, it } from "vitest";
import { addGram, frobeniusNorm, matrixFrom, multiply, rowsOf, subtract, transpose, zeros } from "./matrix.ts";

const a = matrixFrom(2, 3, [1, 2, 3, 4, 5, 6]);
const b = matrixFrom(3, 2, [7, 8, 9, 10, 11, 12]);

describe("matrices", () => {
  it("multiply, transpose, subtract and have a norm", () => {
    expect(multiply(a, b)).toEqual(matrixFrom(2, 2, [58, 64, 139, 154]));
    expect(transpose(a)).toEqual(matrixFrom(3, 2, [1, 4, 2, 5, 3, 6]));
    expect(subtract(a, transpose(b))).toEqual(matrixFrom(2, 3, [-6, -7, -8, -4, -5, -6]));
    expect(frobeniusNorm(matrixFrom(2, 2, [1, -2, 2, 4]))).toBe(5);
  });

  it("add up x^T x over batches of any size", () => {
    const sum = zeros(3, 3);
    addGram(sum, rowsOf(a, 0, 1));
    addGram(sum, rowsOf(a, 1, 2));
    expect(sum).toEqual(multiply(transpose(a), a));
  });

  it("refuse wrong lengths, numbers that are none, and shapes that do not fit", () => {
    expect(() => matrixFrom(2, 2, [1, 2, 3])).toThrow("a matrix of shape [2, 2] needs 4 values, got 3");
    expect(() => matrixFrom(2, 2, [1, 2, NaN, 3])).toThrow("matrix element [1, 0] = NaN must be finite");
    expect(() => multiply(a, a)).toThrow("multiply: the matrices do not fit together, 3 against 2");
    expect(() => subtract(a, b)).toThrow("subtract: the matrices do not fit together, 2 against 3");
    expect(() => addGram(zeros(2, 2), a)).toThrow("addGram: the matrices do not fit together, 3 against 2");
  });
});
