import { describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import { smallestEigenvalue } from "./eigenvalues.ts";
import { addGram, matrixFrom, multiply, transpose, zeros } from "./matrix.ts";
import { svd } from "./svd.ts";

describe("smallestEigenvalue", () => {
  it.each([1, 2, 3, 17, 100])("of the second differences of %i points is 2 - 2 cos(pi / (n + 1))", (n) => {
    const a = zeros(n, n);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) a.values[i * n + j] = i === j ? 2 : Math.abs(i - j) === 1 ? -1 : 0;
    }
    expect(Math.abs(smallestEigenvalue(a) - (2 - 2 * Math.cos(Math.PI / (n + 1))))).toBeLessThan(1e-14);
  });

  it.each([[[-3, 5, 8, 1]], [[2, 2, 2, 2]], [[0, 0, 4, 1]], [[-7, -7, -1, -1]]])(
    "finds the least of %j after a rotation",
    (spectrum) => {
      const { u } = svd(matrixFrom(4, 4, normals(16, 9)));
      const diagonal = zeros(4, 4);
      for (let i = 0; i < 4; i++) diagonal.values[i * 5] = spectrum[i];
      const a = multiply(multiply(u, diagonal), transpose(u));
      expect(Math.abs(smallestEigenvalue(a) - Math.min(...spectrum))).toBeLessThan(1e-13);
    },
  );

  it("is the least singular value of a definite matrix, and zero to rounding of a singular one", () => {
    const definite = zeros(60, 60);
    addGram(definite, matrixFrom(90, 60, normals(5400, 2)));
    const least = svd(definite).singularValues[59];
    expect(Math.abs(smallestEigenvalue(definite) / least - 1)).toBeLessThan(1e-11);
    const singular = zeros(60, 60);
    addGram(singular, matrixFrom(20, 60, normals(1200, 2)));
    expect(Math.abs(smallestEigenvalue(singular))).toBeLessThan(1e-11);
  });

  it("refuses a matrix that is not square", () => {
    expect(() => smallestEigenvalue(zeros(2, 3))).toThrow("smallestEigenvalue needs a square matrix, got shape [2, 3]");
  });
});
