import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { CANDIDATE_CHUNK_COLUMNS, CHUNK_COLUMNS } from "./contract.ts";
import {
  recordRowStatistics,
  recordSoftCap,
  recordTopCandidates,
  rowStatistics,
  rowStatisticsWords,
  softCap,
  topCandidates,
  topCandidatesWords,
} from "./index.ts";

const scaled = (length: number, seed: number, factor: number): Float32Array =>
  normals(length, seed).map((x) => x * factor);

describe("logits by their definitions", () => {
  it("cap smoothly", () => {
    const [small, large] = softCap([0.003, 3000], 30);
    expect(small).toBeCloseTo(0.003, 9);
    expect(large).toBe(30);
  });

  it("find the first of the largest, and sum exponentials without overflow", () => {
    const { argmax, max, logSumExp } = rowStatistics([1, 1000, 1000]);
    expect([argmax, max]).toEqual([1, 1000]);
    expect(logSumExp).toBeCloseTo(1000 + Math.LN2, 12);
    expect(rowStatistics([-Infinity, -Infinity])).toEqual({ argmax: 0, max: -Infinity, logSumExp: -Infinity });
    expect(rowStatistics([1, Number.NaN]).argmax).toBe(-1);
  });

  it("rank candidates by value, then by token", () => {
    expect(topCandidates([1, 3, 2, 3, -Infinity], 3).map(({ token }) => token)).toEqual([1, 3, 2]);
    expect(topCandidates([Number.NaN, -Infinity, 5], 2)).toEqual([
      { token: 2, value: 5 },
      { token: -1, value: -Infinity },
    ]);
  });
});

describe.each(Object.entries(testDevices))("logits on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  interface Statistics {
    readonly argmax: Int32Array;
    readonly max: Float32Array;
    readonly logSumExp: Float32Array;
  }

  async function statisticsOf(values: Float32Array, numRows: number, withLogSumExp = true): Promise<Statistics> {
    const n = values.length / numRows;
    const [argmax, workspace] = [
      test.i32([numRows], new Int32Array(numRows)),
      test.i32([numRows, rowStatisticsWords(n)], new Int32Array(numRows * rowStatisticsWords(n))),
    ];
    const [max, logSumExp] = [1, 2].map(() => test.f32([numRows], new Float32Array(numRows)));
    await test.run((recorder) =>
      recordRowStatistics(
        recorder,
        { withLogSumExp },
        { logits: test.f32([numRows, n], values), argmax, max, workspace, ...(withLogSumExp ? { logSumExp } : {}) },
      ),
    );
    return { argmax: test.readI32(argmax), max: test.readF32(max), logSumExp: test.readF32(logSumExp) };
  }

  async function candidatesOf(
    values: Float32Array,
    numRows: number,
    numCandidates: number,
  ): Promise<{ token: number; value: number }[]> {
    const n = values.length / numRows;
    const words = numRows * topCandidatesWords(n, numCandidates);
    const tokens = test.i32([numRows, numCandidates], new Int32Array(numRows * numCandidates));
    const best = test.f32([numRows, numCandidates], new Float32Array(numRows * numCandidates));
    await test.run((recorder) =>
      recordTopCandidates(
        recorder,
        { numCandidates },
        {
          logits: test.f32([numRows, n], values),
          tokens,
          values: best,
          workspace: test.i32([words], new Int32Array(words)),
        },
      ),
    );
    const readValues = test.readF32(best);
    return Array.from(test.readI32(tokens), (token, i) => ({ token, value: readValues[i] }));
  }

  it.each([1, 5, 64, 1003])("caps rows of %i in place", async (n) => {
    const values = scaled(3 * n, n, 40);
    const logits = test.f32([3, n], values);
    await test.run((recorder) => recordSoftCap(recorder, { logits, cap: 30 }));
    // tanh is good to 2e-7 absolute and 4e-7 relative; the quotient and the product round once each, the inverse once more.
    expect(worstError(test.readF32(logits), softCap(values, 30), { relative: 1e-6, absolute: 0 })).toBeLessThan(1);
  });

  const rows = [
    [1, 1],
    [4, 3],
    [3, 17],
    [2, CHUNK_COLUMNS],
    [2, CHUNK_COLUMNS + 1],
    [5, 2 * CHUNK_COLUMNS + 1021],
    [2, 151_936],
  ] as const;

  it.each(rows)("finds the statistics of %i rows of %i", async (numRows, n) => {
    const values = scaled(numRows * n, n, 5);
    const { argmax, max, logSumExp } = await statisticsOf(values, numRows);
    for (let row = 0; row < numRows; row++) {
      const expected = rowStatistics(values.subarray(row * n, (row + 1) * n));
      expect([argmax[row], max[row]]).toEqual([expected.argmax, expected.max]);
      // The sum is of positive terms: chains of 512 roundings of either sign, 16 partial sums merged, one logarithm.
      expect(worstError([logSumExp[row]], [expected.logSumExp], { relative: 2e-7, absolute: 2e-6 })).toBeLessThan(1);
    }
    const without = await statisticsOf(values, numRows, false);
    expect([without.argmax, without.max]).toEqual([argmax, max]);
  });

  it("takes the first of equal maxima, within a chunk and across chunks", async () => {
    const n = 2 * CHUNK_COLUMNS + 10;
    const values = new Float32Array(4 * n);
    const firsts = [7, CHUNK_COLUMNS - 1, CHUNK_COLUMNS, 2 * CHUNK_COLUMNS + 9];
    firsts.forEach((first, row) => {
      for (let column = first; column < n; column += 3) values[row * n + column] = 2.5;
    });
    expect([...(await statisticsOf(values, 4)).argmax]).toEqual(firsts);
    expect([...(await statisticsOf(new Float32Array(2 * n), 2)).argmax]).toEqual([0, 0]);
  });

  it("keeps infinities and NaN apart", async () => {
    const n = CHUNK_COLUMNS + 5;
    const values = normals(5 * n, 1);
    values[0 * n + n - 1] = Number.NaN;
    values[1 * n + 6] = Infinity;
    values[1 * n + n - 2] = Infinity;
    values.fill(-Infinity, 2 * n, 3 * n);
    values.fill(-Infinity, 3 * n, 3 * n + CHUNK_COLUMNS);
    values[4 * n + 3] = Number.NaN;
    values[4 * n + 4] = Infinity;
    const { argmax, max, logSumExp } = await statisticsOf(values, 5);
    const last = rowStatistics(values.subarray(3 * n, 4 * n));
    expect([...argmax]).toEqual([-1, 6, 0, last.argmax, -1]);
    expect([...max]).toEqual([Number.NaN, Infinity, -Infinity, last.max, Number.NaN]);
    expect([...logSumExp.subarray(0, 3), logSumExp[4]]).toEqual([Number.NaN, Infinity, -Infinity, Number.NaN]);
    expect(logSumExp[3]).toBeCloseTo(last.logSumExp, 5);
  });

  it("gives a row the same bits alone and among others", async () => {
    const [numRows, n] = [7, CHUNK_COLUMNS + 333];
    const values = scaled(numRows * n, 3, 4);
    const together = await statisticsOf(values, numRows);
    for (const row of [0, 6]) {
      const alone = await statisticsOf(values.slice(row * n, (row + 1) * n), 1);
      expect(bitsOf(alone.logSumExp)[0]).toBe(bitsOf(together.logSumExp)[row]);
    }
  });

  it.each([
    [1, 1, 1],
    [3, 5, 8],
    [2, 100, 64],
    [2, CANDIDATE_CHUNK_COLUMNS + 1, 1],
    [3, 2 * CANDIDATE_CHUNK_COLUMNS + 77, 64],
    [1, 151_936, 40],
  ])("finds the candidates of %i rows of %i: the best %i", async (numRows, n, numCandidates) => {
    // Rounded to a few distinct values in the second half, so that ties are many.
    const values = scaled(numRows * n, n, 3).map((x, i) => (i % n > n / 2 ? Math.round(x) : x));
    const found = await candidatesOf(values, numRows, numCandidates);
    for (let row = 0; row < numRows; row++) {
      const expected = topCandidates(values.subarray(row * n, (row + 1) * n), numCandidates);
      expect(found.slice(row * numCandidates, (row + 1) * numCandidates)).toEqual(expected);
    }
  });

  it("finds the candidates of any row", async () => {
    const logit = fc.oneof(fc.integer({ min: -3, max: 3 }), fc.constantFrom(-Infinity, Infinity, Number.NaN));
    await fc.assert(
      fc.asyncProperty(
        fc.array(logit, { minLength: 1, maxLength: 90 }),
        fc.integer({ min: 1, max: 20 }),
        async (row, count) => {
          expect(await candidatesOf(Float32Array.from(row), 1, count)).toEqual(topCandidates(row, count));
          test.clear();
        },
      ),
      { numRuns: 60, seed: 1 },
    );
  });

  it("names what is wrong", async () => {
    const logits = test.f32([2, 8], new Float32Array(16));
    const [argmax, workspace] = [test.i32([2], [0, 0]), test.i32([64], new Int32Array(64))];
    const max = test.f32([2], [0, 0]);
    const statistics = (changed: object) => () =>
      test.run((recorder) =>
        recordRowStatistics(recorder, { withLogSumExp: false }, { logits, argmax, max, workspace, ...changed }),
      );
    await expect(statistics({ logSumExp: max })).rejects.toThrow(
      "logSumExp must be given exactly if spec.withLogSumExp is true",
    );
    await expect(statistics({ argmax: max })).rejects.toThrow("argmax must be of type i32, got f32");
    await expect(statistics({ workspace: { ...workspace, shape: [3] } })).rejects.toThrow(
      "workspace must have at least 4 elements, got shape [3]",
    );
    await expect(statistics({ numRows: 3 })).rejects.toThrow("logits must have at least 3 rows, got shape [2, 8]");
    await expect(test.run((r) => recordSoftCap(r, { logits, cap: 0 }))).rejects.toThrow(
      "cap must be a finite number above 0, got 0",
    );
    const candidates = (numCandidates: number) => () =>
      test.run((r) => recordTopCandidates(r, { numCandidates }, { logits, tokens: argmax, values: max, workspace }));
    await expect(candidates(65)).rejects.toThrow("numCandidates must be a whole number from 1 to 64, got 65");
    await expect(candidates(2)).rejects.toThrow("tokens must have at least 4 elements, got shape [2]");
  });
});
