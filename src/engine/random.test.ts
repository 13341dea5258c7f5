import { describe, expect, it } from "vitest";
import { philox4x32, randomSeed, uniformAt } from "./random.ts";

describe("philox4x32", () => {
  // The known answers that the authors publish with Random123.
  it.each([
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ])("gives the published answer for counter %j", (counter, [low, high], answer) => {
    const words = Uint32Array.from(counter);
    philox4x32(words, low, high);
    expect([...words]).toEqual(answer);
  });
});

describe("uniformAt", () => {
  it("depends on every argument and on nothing else", () => {
    const value = uniformAt(7, 1, 40);
    expect([
      uniformAt(8, 1, 40),
      uniformAt(7 + 2 ** 40, 1, 40),
      uniformAt(7, 2, 40),
      uniformAt(7, 1, 41),
    ]).not.toContain(value);
    expect(uniformAt(7, 1, 40)).toBe(value);
  });

  it("is uniform: 64 cells of 64,000 draws pass a chi-square test", () => {
    const counts = new Float64Array(64);
    for (let i = 0; i < 64_000; i++) counts[Math.floor(uniformAt(123, i % 5, i) * 64)]++;
    const chiSquare = counts.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
    expect(chiSquare).toBeLessThan(103.4); // 63 degrees of freedom, 0.1 %
  });

  it("takes a seed of 53 bits", () => {
    const seed = randomSeed();
    expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
    const value = uniformAt(Number.MAX_SAFE_INTEGER, 0, 0);
    expect(value >= 0 && value < 1).toBe(true);
  });
});
