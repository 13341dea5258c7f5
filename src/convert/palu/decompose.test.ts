import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { normals } from "../../../test/ops/testDevice.ts";
import {
  addGram,
  frobeniusNorm,
  type Matrix,
  matrixFrom,
  multiply,
  rowsOf,
  subtract,
  transpose,
  zeros,
} from "../linearAlgebra/index.ts";
import { decompose, type LowRankGroup } from "./decompose.ts";
import { whiten } from "./whitening.ts";

/** Columns of falling size, as weights and activations have them: ranks then matter. */
function random(rows: number, columns: number, seed: number, decay = 0.05): Matrix {
  const values = normals(rows * columns, seed).map((value, i) => value * Math.exp(-decay * (i % columns)));
  return matrixFrom(rows, columns, values);
}

/** Inputs whose channels depend on each other. */
function calibrationInputs(samples: number, dim: number, seed: number): Matrix {
  return multiply(random(samples, dim, seed, 0.1), random(dim, dim, seed + 1, 0));
}

function momentsOf(x: Matrix): Matrix {
  const sum = zeros(x.columns, x.columns);
  addGram(sum, x);
  return sum;
}

/** W_g - up down. */
function residual(weight: Matrix, groups: readonly LowRankGroup[], g: number): Matrix {
  const groupDim = weight.rows / groups.length;
  const rows = rowsOf(weight, g * groupDim, (g + 1) * groupDim);
  return subtract(rows, multiply(groups[g].up, groups[g].down));
}

/** ||(W - up down) X^T|| over all groups: the error of the keys or values of the inputs. */
function errorOn(x: Matrix, weight: Matrix, groups: readonly LowRankGroup[]): number {
  const squares = groups.map((_, g) => frobeniusNorm(multiply(residual(weight, groups, g), transpose(x))) ** 2);
  return Math.sqrt(squares.reduce((a, b) => a + b));
}

const granularities = [
  ["M-LRD", 8],
  ["G-LRD", 2],
  ["J-LRD", 1],
] as const;

describe.each(granularities)("decompose by %s", (_name, numGroups) => {
  const weight = random(64, 48, 11);
  const groupDim = 64 / numGroups;
  const full = Array<number>(numGroups).fill(Math.min(groupDim, 48));
  const ranks = Array.from({ length: numGroups }, (_, g) => 3 + (g % 4));
  const whitening = whiten(momentsOf(calibrationInputs(200, 48, 5)));

  it.each([undefined, whitening])("reproduces the weight at full rank", (given) => {
    const groups = decompose(weight, { numGroups, ranks: full, whitening: given });
    for (const [g, { error, whitenedError }] of groups.entries()) {
      expect(frobeniusNorm(residual(weight, groups, g))).toBeLessThan(1e-9);
      expect(error).toBeLessThan(1e-9);
      expect(whitenedError).toBe(0);
    }
  });

  it("misses the weight by the singular values it drops", () => {
    const groups = decompose(weight, { numGroups, ranks });
    for (const [g, { up, down, error, whitenedError, singularValues }] of groups.entries()) {
      expect([up.rows, up.columns, down.rows, down.columns]).toEqual([groupDim, ranks[g], ranks[g], 48]);
      const dropped = Math.hypot(...singularValues.subarray(ranks[g]));
      expect(frobeniusNorm(residual(weight, groups, g)) / dropped).toBeCloseTo(1, 12);
      expect(error / dropped).toBeCloseTo(1, 12);
      expect(whitenedError / dropped).toBeCloseTo(1, 12);
    }
  });

  it("with whitening, misses the keys of the calibration inputs by the singular values it drops", () => {
    const x = calibrationInputs(200, 48, 5);
    const groups = decompose(weight, { numGroups, ranks, whitening });
    for (const [g, { error, whitenedError }] of groups.entries()) {
      const missed = residual(weight, groups, g);
      expect(frobeniusNorm(missed) / error).toBeCloseTo(1, 12);
      expect(frobeniusNorm(multiply(missed, whitening.factor)) / whitenedError).toBeCloseTo(1, 9);
      expect(frobeniusNorm(multiply(missed, transpose(x))) / whitenedError).toBeCloseTo(1, 9);
    }
  });

  it("shares the singular values evenly between its factors", () => {
    for (const { up, down, singularValues } of decompose(weight, { numGroups, ranks })) {
      const left = multiply(transpose(up), up);
      const right = multiply(down, transpose(down));
      expect(frobeniusNorm(subtract(left, right))).toBeLessThan(1e-12 * singularValues[0]);
      expect(left.values[0] / singularValues[0]).toBeCloseTo(1, 12);
    }
  });
});

describe("weights of any shape and rank", () => {
  it("come back at full rank, and are otherwise missed by what is dropped", () => {
    const shapes = fc.record({
      numGroups: fc.integer({ min: 1, max: 4 }),
      groupDim: fc.integer({ min: 1, max: 12 }),
      inFeatures: fc.integer({ min: 1, max: 16 }),
      // Of the weight itself: below the group's dimension, some singular values are zeros.
      weightRank: fc.integer({ min: 1, max: 16 }),
      scale: fc.constantFrom(1e-6, 1, 1e4),
      seed: fc.integer({ min: 1, max: 1e6 }),
    });
    const wanted = fc.integer({ min: 1, max: 12 });
    fc.assert(
      fc.property(shapes, wanted, ({ numGroups, groupDim, inFeatures, weightRank, scale, seed }, rank) => {
        const left = random(numGroups * groupDim, weightRank, seed, 0);
        const product = multiply(left, random(weightRank, inFeatures, seed + 1));
        const weight: Matrix = { ...product, values: product.values.map((value) => value * scale) };
        const largest = Math.min(groupDim, inFeatures);
        const full = decompose(weight, { numGroups, ranks: Array<number>(numGroups).fill(largest) });
        const ranks = Array<number>(numGroups).fill(Math.min(rank, largest));
        const truncated = decompose(weight, { numGroups, ranks });
        for (const g of full.keys()) {
          const size = Math.hypot(...full[g].singularValues);
          expect(frobeniusNorm(residual(weight, full, g))).toBeLessThanOrEqual(1e-13 * size);
          const dropped = Math.hypot(...full[g].singularValues.subarray(ranks[g]));
          expect(Math.abs(frobeniusNorm(residual(weight, truncated, g)) - dropped)).toBeLessThanOrEqual(1e-13 * size);
        }
      }),
    );
  });
});

describe("whitened against plain decomposition", () => {
  it("is never worse on the calibration inputs, for random weights, inputs, groups and ranks", () => {
    const shape = fc.record({
      numGroups: fc.integer({ min: 1, max: 3 }),
      groupDim: fc.integer({ min: 2, max: 10 }),
      inFeatures: fc.integer({ min: 2, max: 14 }),
      samples: fc.integer({ min: 1, max: 40 }),
      seed: fc.integer({ min: 1, max: 1e6 }),
    });
    fc.assert(
      fc.property(
        shape,
        fc.integer({ min: 1, max: 10 }),
        ({ numGroups, groupDim, inFeatures, samples, seed }, wanted) => {
          const weight = random(numGroups * groupDim, inFeatures, seed);
          const x = calibrationInputs(samples, inFeatures, seed + 1);
          const whitening = whiten(momentsOf(x));
          const ranks = Array<number>(numGroups).fill(Math.min(wanted, groupDim, inFeatures));
          const plain = decompose(weight, { numGroups, ranks });
          const whitened = decompose(weight, { numGroups, ranks, whitening });
          // Where a shift was needed, what is least is the error on the inputs and on `shift` times each direction besides.
          const withShift = (groups: LowRankGroup[]): number =>
            Math.hypot(
              errorOn(x, weight, groups),
              Math.sqrt(whitening.shift) * errorOn(identity(inFeatures), weight, groups),
            );
          expect(withShift(whitened)).toBeLessThanOrEqual(withShift(plain) * (1 + 1e-7) + 1e-7);
        },
      ),
      { numRuns: 60 },
    );
  });

  it("is better by a margin where inputs use few directions", () => {
    const weight = random(32, 24, 3, 0);
    const x = multiply(random(100, 24, 4, 0.3), random(24, 24, 5, 0));
    const options = { numGroups: 2, ranks: [6, 6] };
    const whitened = decompose(weight, { ...options, whitening: whiten(momentsOf(x)) });
    expect(errorOn(x, weight, whitened)).toBeLessThan(0.7 * errorOn(x, weight, decompose(weight, options)));
  });
});

describe("decompose", () => {
  const weight = random(12, 8, 1);

  it.each([
    [{ numGroups: 5, ranks: [1, 1, 1, 1, 1] }, "numGroups must divide the 12 rows of weight, got 5"],
    [{ numGroups: 2, ranks: [1] }, "ranks must have numGroups = 2 entries, got 1"],
    [{ numGroups: 2, ranks: [6, 7] }, "ranks[1] must be an integer from 1 to min(groupDim, inFeatures) = 6, got 7"],
    [{ numGroups: 1, ranks: [9] }, "ranks[0] must be an integer from 1 to min(groupDim, inFeatures) = 8, got 9"],
    [{ numGroups: 2, ranks: [0, 2] }, "ranks[0] must be an integer from 1 to min(groupDim, inFeatures) = 6, got 0"],
  ])("refuses %j", (options, message) => {
    expect(() => decompose(weight, options)).toThrow(message);
  });

  it("refuses the whitening of a layer of another size", () => {
    const whitening = whiten(identity(9));
    expect(() => decompose(weight, { numGroups: 1, ranks: [2], whitening })).toThrow(
      "whitening is for 9 input features, but weight has 8 columns",
    );
  });
});

function identity(dim: number): Matrix {
  const result = zeros(dim, dim);
  for (let i = 0; i < dim; i++) result.values[i * dim + i] = 1;
  return result;
}
