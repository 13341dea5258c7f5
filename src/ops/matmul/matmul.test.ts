import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { packed, product, randomWeights, type StoredMatrix, typesAndPrecisions } from "../../../test/matmul/weights.ts";
import { bitsOf, normals, TestDevice } from "../../../test/ops/testDevice.ts";
import type { CpuDeviceOptions } from "../../devices/index.ts";
import { dequantize, type WeightType } from "../../tensor/index.ts";
import { type ActivationPrecision, type Arithmetic, matmul } from "./index.ts";

const rows = 37;

function storedMatrix(type: WeightType, precision: ActivationPrecision, columns: number, numRows = rows): StoredMatrix {
  return { type, rows: numRows, columns, precision, bytes: randomWeights(type, numRows * columns, 7) };
}
const columnsOf = (type: WeightType): number => (/^B?F/.test(type) ? 259 : 512);

describe("the reference", () => {
  it("is the definition", () => {
    const out = matmul({ weight: [1, 2, 3, 4, 5, 6], rows: 2, columns: 3, x: [1, 0, -1, 2, 2, 2], bias: [10, 20] });
    expect([...out]).toEqual([8, 18, 22, 50]);
  });
});

/** The most that rounding moves an activation, as a part of the largest magnitude in its block of 32. */
const rounding: Readonly<Record<Arithmetic, number>> = { f32: 0, i16: 1 / (2 * 32767), i8: 1 / (2 * 127) };

/**
 * The most that the product of a row and a token may be off: each activation by half a step of its block of 32, and the sums of f32 by
 * a part of the products' magnitudes (2^-24 for each of the additions, were they all wrong in the same direction).
 */
function errorBound(weights: Float32Array, x: Float32Array, arithmetic: Arithmetic): number {
  let [magnitude, moved] = [0, 0];
  for (let from = 0; from < x.length; from += 32) {
    let [weightSum, largest] = [0, 0];
    for (let c = from; c < Math.min(from + 32, x.length); c++) {
      magnitude += Math.abs(weights[c] * x[c]);
      weightSum += Math.abs(weights[c]);
      largest = Math.max(largest, Math.abs(x[c]));
    }
    moved += weightSum * largest * rounding[arithmetic];
  }
  return moved * 1.001 + magnitude * x.length * 2 ** -24;
}

/** Root of the mean square error against that of the result, for normal activations: what to expect, where the bound is the worst. */
const typicalError: Readonly<Record<Arithmetic, number>> = { f32: 5e-7, i16: 3e-5, i8: 7e-3 };

const devices: readonly (readonly [string, CpuDeviceOptions])[] = [
  ["1 thread, plain SIMD", { threads: 1, relaxedSimd: false }],
  ["2 threads, the best SIMD there is", { threads: 2 }],
];

describe.each(devices)("matmul on %s", (_name, options) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create(options);
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(typesAndPrecisions)("equals the reference for %s weights and %s activations", async (type, precision) => {
    const [columns, numTokens] = [columnsOf(type), 7];
    const stored = storedMatrix(type, precision, columns);
    const weights = dequantize(type, stored.bytes, rows * columns);
    const x = normals(numTokens * columns, 3);
    const weight = await packed(test, stored);
    const out = await product(test, weight, x);
    const exact = matmul({ weight: weights, rows, columns, x });
    let [squares, errors] = [0, 0];
    for (let t = 0; t < numTokens; t++) {
      for (let r = 0; r < rows; r++) {
        const error = Math.abs(out[t * rows + r] - exact[t * rows + r]);
        const row = weights.subarray(r * columns, (r + 1) * columns);
        const bound = errorBound(row, x.subarray(t * columns, (t + 1) * columns), weight.arithmetic);
        expect(error, `token ${t}, row ${r}`).toBeLessThanOrEqual(bound);
        squares += exact[t * rows + r] ** 2;
        errors += error ** 2;
      }
    }
    expect(Math.sqrt(errors / squares)).toBeLessThan(typicalError[weight.arithmetic]);
  });

  it.each(typesAndPrecisions)("gives a token the same bits in any company: %s, %s", async (type, precision) => {
    const [columns, numTokens] = [columnsOf(type), 20];
    const weight = await packed(test, storedMatrix(type, precision, columns));
    const x = normals(numTokens * columns, 4);
    const together = bitsOf(await product(test, weight, x));
    // Every number of tokens, and the last tokens as the first of their own batch: every kernel and every place in a tile.
    for (let n = 1; n < numTokens; n++) {
      const first = bitsOf(await product(test, weight, x.subarray(0, n * columns)));
      expect(
        first.every((word, i) => word === together[i]),
        `the first ${n}`,
      ).toBe(true);
      if (n <= 5) {
        const last = bitsOf(await product(test, weight, x.subarray((numTokens - n) * columns)));
        expect(
          last.every((word, i) => word === together[(numTokens - n) * rows + i]),
          `the last ${n}`,
        ).toBe(true);
      }
      test.clear();
    }
  });

  it.each([1, 2, 4, 5, 6])(
    "adds a bias, and to what was there, in rows further apart, for %i tokens",
    async (numTokens) => {
      const [columns, outStride] = [64, rows + 6];
      for (const precision of ["f32", "int16", "int8"] as const) {
        const weight = await packed(test, storedMatrix("Q4_1", precision, columns));
        const x = normals(numTokens * columns, 5);
        const bias = normals(rows, 6);
        const before = normals(numTokens * outStride, 7);
        const plain = await product(test, weight, x);
        for (const accumulate of [false, true]) {
          for (const withBias of [false, true]) {
            const options = { before, outStride, accumulate, ...(withBias ? { bias } : {}) };
            const out = await product(test, weight, x, options);
            const expected = before.slice();
            plain.forEach((value, i) => {
              const [t, r] = [Math.floor(i / rows), i % rows];
              const sum = withBias ? Math.fround(value + bias[r]) : value;
              expected[t * outStride + r] = accumulate ? sum + before[t * outStride + r] : sum;
            });
            expect(bitsOf(out)).toEqual(bitsOf(expected));
          }
        }
      }
    },
  );

  it.each([1, 3, 4, 5, 15, 16, 17, 32, 33])("of %i rows writes these and no more", async (numRows) => {
    const [columns, numTokens] = [64, 5];
    const all = storedMatrix("Q8_0", "int8", columns, 48);
    const x = normals(numTokens * columns, 8);
    for (const precision of ["f32", "int8"] as const) {
      const whole = await product(test, await packed(test, { ...all, precision }), x);
      const rowBytes = all.bytes.length / all.rows;
      const part = { ...all, precision, rows: numRows, bytes: all.bytes.subarray(0, numRows * rowBytes) };
      for (const tokens of [1, numTokens]) {
        const before = new Float32Array(tokens * numRows + 9).fill(-77);
        const out = await product(test, await packed(test, part), x.subarray(0, tokens * columns), { before });
        const expected = before.slice();
        for (let t = 0; t < tokens; t++) expected.set(whole.subarray(t * 48, t * 48 + numRows), t * numRows);
        expect(bitsOf(out)).toEqual(bitsOf(expected));
      }
    }
  });

  it.each([1, 2, 3, 4, 5, 30])("of %i columns of plain weights", async (columns) => {
    for (const type of ["F32", "F16", "BF16"] as const) {
      const stored = storedMatrix(type, "int8", columns);
      const x = normals(3 * columns, 9);
      const exact = matmul({ weight: dequantize(type, stored.bytes, rows * columns), rows, columns, x });
      const out = await product(test, await packed(test, stored), x);
      out.forEach((value, i) => {
        expect(Math.abs(value - exact[i])).toBeLessThan(1e-6 * columns);
      });
    }
  });

  it("does nothing for no tokens", async () => {
    const weight = await packed(test, storedMatrix("Q4_0", "int8", 64));
    const before = Float32Array.of(1, 2, 3);
    expect(await product(test, weight, new Float32Array(0), { before })).toEqual(before);
  });
});

it("one thread and two give the same bits", async () => {
  const [one, two] = await Promise.all([1, 2].map((threads) => TestDevice.create({ threads })));
  for (const [type, precision] of typesAndPrecisions) {
    const stored = storedMatrix(type, precision, columnsOf(type), 100);
    const x = normals(6 * stored.columns, 10);
    const [alone, shared] = await Promise.all(
      [one, two].map(async (test) => bitsOf(await product(test, await packed(test, stored), x))),
    );
    expect(shared, `${type} ${precision}`).toEqual(alone);
  }
  await Promise.all([one.close(), two.close()]);
});
