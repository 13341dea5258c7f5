import { describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import { addGram, frobeniusNorm, type Matrix, matrixFrom, multiply, subtract, transpose, zeros } from "./matrix.ts";
import { cholesky, solveLower, timesLower } from "./triangular.ts";

function gram(samples: number, dim: number): Matrix {
  const sum = zeros(dim, dim);
  addGram(sum, matrixFrom(samples, dim, normals(samples * dim, 3)));
  return sum;
}

function factor(a: Matrix): Matrix {
  const s = cholesky(a);
  if (!s) throw new Error("should be positive definite");
  return s;
}

describe("cholesky", () => {
  it("gives a lower triangle whose product with its transpose is the matrix", () => {
    const a = gram(90, 60);
    const s = factor(a);
    expect(frobeniusNorm(subtract(multiply(s, transpose(s)), a)) / frobeniusNorm(a)).toBeLessThan(1e-15);
    for (let i = 0; i < 60; i++)
      expect(s.values.subarray(i * 60 + i + 1, (i + 1) * 60).every((x) => x === 0)).toBe(true);
  });

  it("reads the lower half only", () => {
    const s = factor(matrixFrom(2, 2, [4, 99, 2, 2]));
    expect([...s.values]).toEqual([2, 0, 1, 1]);
  });

  it("says undefined of a matrix that is not positive definite, also where only rounding hides it", () => {
    expect(cholesky(matrixFrom(2, 2, [1, 2, 2, 1]))).toBeUndefined();
    expect(cholesky(zeros(3, 3))).toBeUndefined();
    expect(cholesky(gram(20, 40))).toBeUndefined();
  });

  it("refuses a matrix that is not square", () => {
    expect(() => cholesky(zeros(2, 3))).toThrow("cholesky needs a square matrix, got shape [2, 3]");
  });
});

describe("products and solutions with a lower triangle", () => {
  const s = factor(gram(200, 50));
  const b = matrixFrom(7, 50, normals(350, 5));

  it("multiply as the whole matrix does", () => {
    expect(frobeniusNorm(subtract(timesLower(b, s), multiply(b, s)))).toBeLessThan(1e-12);
  });

  it("undo each other", () => {
    expect(frobeniusNorm(subtract(solveLower(timesLower(b, s), s), b))).toBeLessThan(1e-12);
  });

  it("refuse what does not fit", () => {
    expect(() => solveLower(zeros(2, 4), s)).toThrow("b must have 50 columns as the triangular matrix has rows, got 4");
    expect(() => timesLower(b, zeros(50, 2))).toThrow("timesLower needs a square matrix, got shape [50, 2]");
  });
});
