import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { searchRanks } from "./rankSearch.ts";

/** Two layers of 4 heads of 48 channels: groups of 96. */
const shape = { numKvHeads: 4, headDim: 48, headGroupSize: 2, paramRatioTarget: 0.5 };

describe("uniform ranks", () => {
  it("are the same part of every group, halves rounded to the even block", () => {
    const found = (ratio: number) =>
      searchRanks({ ...shape, method: "uniform", numModules: 2, paramRatioTarget: ratio });
    // 96 * 0.5 = 48 = 1.5 blocks, 96 * 0.84 = 80.64, 96 * 0.1 = 9.6 = 0.3 blocks.
    expect(found(0.5).ranks).toEqual([
      [64, 64],
      [64, 64],
    ]);
    expect(found(0.84).ranks[0]).toEqual([96, 96]);
    expect(found(0.1).ranks[0]).toEqual([32, 32]);
    expect(found(1).ranks[0]).toEqual([96, 96]);
  });

  it("round 2.5 blocks down and 3.5 up", () => {
    const rankOf = (headDim: number) =>
      searchRanks({ method: "uniform", numModules: 1, numKvHeads: 1, headGroupSize: 1, headDim, paramRatioTarget: 0.5 })
        .ranks[0][0];
    expect([rankOf(160), rankOf(224)]).toEqual([64, 128]);
  });

  it("may exceed their group, and report what the rounding spent", () => {
    const found = searchRanks({ ...shape, headDim: 40, method: "uniform", numModules: 2, paramRatioTarget: 0.9 });
    expect(found).toEqual({
      ranks: [
        [64, 64],
        [64, 64],
      ],
      beforeRounding: [
        [72, 72],
        [72, 72],
      ],
      totalRank: 320,
      target: 288,
      rankSum: 256,
      deviation: 256 / 288 - 1,
    });
    const single = { method: "uniform", numModules: 1, numKvHeads: 1, headGroupSize: 1, headDim: 50 } as const;
    expect(searchRanks({ ...single, paramRatioTarget: 1 })).toMatchObject({ ranks: [[64]], rankSum: 64, target: 50 });
  });
});

describe("ranks by Fisher information", () => {
  const budget = { numKvHeads: 2, headDim: 10, headGroupSize: 1, blockSize: 1 };

  it("hand the rest out one by one, smallest deficit first", () => {
    // Shares of 20: 3.2, 6.4, 8, 2.4; one is left for the smallest deficit, which is that of the whole share.
    const fisher = [
      [8, 16],
      [20, 6],
    ];
    const { ranks } = searchRanks({ ...budget, method: "fisher", fisher, paramRatioTarget: 0.5 });
    expect(ranks).toEqual([
      [3, 6],
      [9, 2],
    ]);
  });

  it("cap a group at its size and give the rest to others, round after round", () => {
    // Shares of 20: 16, 2, 1, 1. Six are left; group 0 is full, so the others get two each.
    const fisher = [
      [16, 2],
      [1, 1],
    ];
    const { ranks } = searchRanks({ ...budget, method: "fisher", fisher, paramRatioTarget: 0.5 });
    expect(ranks).toEqual([
      [10, 4],
      [3, 3],
    ]);
  });

  it("overdraw a fractional budget by a whole round", () => {
    // Shares of 18.4: 4.6 each, so 2.4 are left after the whole parts, and nothing ever leaves exactly 0.
    const found = searchRanks({
      ...budget,
      method: "fisher",
      fisher: [
        [1, 1],
        [1, 1],
      ],
      paramRatioTarget: 0.46,
    });
    expect(found.ranks).toEqual([
      [5, 5],
      [5, 5],
    ]);
    expect(found.deviation).toBeCloseTo(20 / 18.4 - 1, 12);
  });

  it("split a module's rank evenly with fisher_uniform, dropping what does not divide", () => {
    const found = searchRanks({ ...budget, method: "fisher_uniform", fisher: [1, 2], paramRatioTarget: 0.525 });
    // Shares of 21: 7 and 14.
    expect(found.beforeRounding).toEqual([[7], [14]]);
    expect(found.ranks).toEqual([
      [3, 3],
      [7, 7],
    ]);
    expect(found.rankSum).toBe(20);
  });

  it("spend the budget before rounding: exactly where it is whole, at most one round above where it is not", () => {
    const searches = fc.record({
      numKvHeads: fc.integer({ min: 1, max: 4 }),
      headDim: fc.integer({ min: 1, max: 40 }),
      paramRatioTarget: fc.double({ min: 0.01, max: 1, noNaN: true }),
      numModules: fc.integer({ min: 1, max: 6 }),
    });
    fc.assert(
      fc.property(searches, fc.infiniteStream(fc.integer({ min: 1, max: 1000 })), (search, values) => {
        const { numKvHeads, headDim, numModules } = search;
        const fisher = Array.from({ length: numModules }, () => [...values.take(numKvHeads)]);
        const found = searchRanks({ ...search, headGroupSize: 1, method: "fisher", fisher });
        const spent = found.beforeRounding.flat().reduce((a, b) => a + b);
        expect(Math.max(...found.beforeRounding.flat())).toBeLessThanOrEqual(headDim);
        if (Number.isInteger(found.target)) expect(spent).toBe(found.target);
        else expect(spent >= found.target && spent < found.target + numModules * numKvHeads).toBe(true);
      }),
    );
  });
});

describe("searchRanks", () => {
  const fisher = [
    [1, 2],
    [3, 4],
  ];
  it.each([
    [{ ...shape, headGroupSize: 3, method: "fisher", fisher }, "headGroupSize must divide numKvHeads = 4, got 3"],
    [{ ...shape, headDim: 0, method: "fisher", fisher }, "headDim must be a positive integer, got 0"],
    [{ ...shape, blockSize: 1.5, method: "fisher", fisher }, "blockSize must be a positive integer, got 1.5"],
    [
      { ...shape, paramRatioTarget: 1.2, method: "fisher", fisher },
      "paramRatioTarget must be above 0 and at most 1, got 1.2",
    ],
    [{ ...shape, method: "uniform", numModules: 0 }, "numModules must be a positive integer, got 0"],
    [{ ...shape, method: "fisher", fisher: [[1, 2], [3]] }, "fisher[1] must have 2 groups, got 1"],
    [{ ...shape, method: "fisher_uniform", fisher: [1, -2] }, "fisher must be finite and not negative, got -2"],
    [{ ...shape, method: "fisher_uniform", fisher: [0, 0] }, "fisher must have a value above 0"],
  ] as const)("refuses %j", (search, message) => {
    expect(() => searchRanks(search)).toThrow(message);
  });
});
