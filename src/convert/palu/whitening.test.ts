import { describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import {
  addGram,
  frobeniusNorm,
  type Matrix,
  matrixFrom,
  multiply,
  smallestEigenvalue,
  subtract,
  transpose,
  zeros,
} from "../linearAlgebra/index.ts";
import { whiten } from "./whitening.ts";

function moments(samples: number, dim: number): Matrix {
  const sum = zeros(dim, dim);
  addGram(sum, matrixFrom(samples, dim, normals(samples * dim, 7)));
  return sum;
}

describe("whiten", () => {
  it("factorises the moments of enough inputs as they are", () => {
    const given = moments(80, 32);
    const { factor, shift } = whiten(given);
    expect(shift).toBe(0);
    expect(frobeniusNorm(subtract(multiply(factor, transpose(factor)), given)) / frobeniusNorm(given)).toBeLessThan(
      1e-14,
    );
  });

  it("raises the smallest eigenvalue of singular moments to 1e-3, and says by how much", () => {
    const given = moments(10, 32);
    const { factor, shift } = whiten(given);
    expect(shift).toBeCloseTo(1e-3, 12);
    expect(smallestEigenvalue(multiply(factor, transpose(factor)))).toBeCloseTo(1e-3, 12);
  });

  it("raises a negative eigenvalue too, which rounding in lower precision may have left", () => {
    const { factor, shift } = whiten(matrixFrom(2, 2, [1, 2, 2, 1]));
    expect(shift).toBeCloseTo(1.001, 14);
    expect(multiply(factor, transpose(factor)).values[0]).toBeCloseTo(2.001, 14);
  });

  it("refuses moments that are not square, not symmetric, or too large for the shift to count", () => {
    expect(() => whiten(zeros(2, 3))).toThrow("whiten needs a square matrix, got shape [2, 3]");
    expect(() => whiten(matrixFrom(2, 2, [1, 0.5, 0, 1]))).toThrow(
      "moments must be symmetric, got [1, 0] = 0 and [0, 1] = 0.5",
    );
    expect(() => whiten(matrixFrom(2, 2, [1e16, 1e16, 1e16, 1e16]))).toThrow("divide all inputs by a constant first");
  });
});
