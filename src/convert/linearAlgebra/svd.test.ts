import { describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import { frobeniusNorm, type Matrix, matrixFrom, multiply, subtract, transpose, zeros } from "./matrix.ts";
import { type Svd, svd } from "./svd.ts";

function random(rows: number, columns: number, seed = rows * columns): Matrix {
  return matrixFrom(rows, columns, normals(rows * columns, seed));
}

function diagonal(values: readonly number[] | Float64Array): Matrix {
  const result = zeros(values.length, values.length);
  for (const [i, value] of values.entries()) result.values[i * values.length + i] = value;
  return result;
}

/** How far the rows are from orthonormal. */
function skew(rows: Matrix): number {
  return frobeniusNorm(subtract(multiply(rows, transpose(rows)), diagonal(Array(rows.rows).fill(1))));
}

function product({ u, singularValues, vt }: Svd): Matrix {
  return multiply(multiply(u, diagonal(singularValues)), vt);
}

function relativeError(a: Matrix, result: Svd): number {
  return frobeniusNorm(subtract(product(result), a)) / frobeniusNorm(a);
}

describe("svd", () => {
  it.each([
    [1, 1],
    [1, 7],
    [7, 1],
    [5, 3],
    [16, 16],
    [24, 100],
    [100, 64],
    [128, 128],
  ])("of a %i x %i matrix has orthonormal factors that multiply to it, and falling values", (rows, columns) => {
    const a = random(rows, columns);
    const result = svd(a);
    const k = Math.min(rows, columns);
    expect([result.u.rows, result.u.columns, result.vt.rows, result.vt.columns]).toEqual([rows, k, k, columns]);
    expect(relativeError(a, result)).toBeLessThan(1e-14);
    expect(skew(transpose(result.u))).toBeLessThan(1e-13);
    expect(skew(result.vt)).toBeLessThan(1e-13);
    expect([...result.singularValues]).toEqual([...result.singularValues].sort((a, b) => b - a));
  });

  it("finds the values a matrix was made with, each to its own rounding over eight orders of magnitude", () => {
    const values = Array.from({ length: 20 }, (_, i) => 10 ** (3 - i * 0.4));
    const rows = multiply(diagonal(values), svd(random(20, 31)).vt);
    const got = svd(rows).singularValues;
    for (const [i, value] of values.entries()) expect(Math.abs(got[i] / value - 1)).toBeLessThan(1e-12);
  });

  it("finds the values of Hilbert's matrix, whose largest and smallest are known", () => {
    const hilbert = matrixFrom(
      5,
      5,
      Float64Array.from({ length: 25 }, (_, i) => 1 / (Math.floor(i / 5) + (i % 5) + 1)),
    );
    const { singularValues } = svd(hilbert);
    // det = 1 / 266716800000 (OEIS A005249), trace = 1 + 1/3 + 1/5 + 1/7 + 1/9.
    expect(singularValues.reduce((a, b) => a * b) * 266716800000).toBeCloseTo(1, 9);
    expect(singularValues.reduce((a, b) => a + b)).toBeCloseTo(1 + 1 / 3 + 1 / 5 + 1 / 7 + 1 / 9, 14);
  });

  it("gives zeros for what a matrix of low rank lacks", () => {
    const a = multiply(random(40, 6), random(6, 50));
    const result = svd(a);
    expect(relativeError(a, result)).toBeLessThan(1e-14);
    expect(result.singularValues[5]).toBeGreaterThan(1);
    expect(result.singularValues[6]).toBeLessThan(1e-12);
    expect(skew(transpose(result.u))).toBeLessThan(1e-13);
  });

  it("decomposes zeros, and matrices with rows or columns of zeros", () => {
    expect([...svd(zeros(3, 4)).singularValues]).toEqual([0, 0, 0]);
    const a = matrixFrom(3, 3, [0, 0, 0, 3, 0, 4, 0, 0, 0]);
    const result = svd(a);
    expect([...result.singularValues]).toEqual([5, 0, 0]);
    expect(relativeError(a, result)).toBeLessThan(1e-15);
  });

  it.each([1e-200, 1e200])("neither overflows nor vanishes at %f", (scale) => {
    const a = random(6, 9);
    const scaled = svd({ ...a, values: a.values.map((value) => value * scale) });
    const expected = svd(a).singularValues;
    for (const [i, value] of expected.entries()) {
      expect(scaled.singularValues[i] / scale / value).toBeCloseTo(1, 12);
    }
  });
});
