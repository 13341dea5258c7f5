import { describe, expect, it } from "vitest";
import { normal, permutation, randint } from "./rng.ts";

describe("the golden generator", () => {
  it("gives the published test vectors", () => {
    expect([...normal(7, 4, 1)]).toEqual([
      0.6914089918136597, -0.19906321167945862, -1.6301934719085693, -2.278998851776123,
    ]);
    expect([...normal(7, 4, 0.05)]).toEqual([
      0.03457045182585716, -0.009953160770237446, -0.08150967210531235, -0.11394994705915451,
    ]);
    expect([...randint(3, 6, 0, 100)]).toEqual([40, 26, 80, 0, 77, 44]);
    expect([...permutation(5, 8)]).toEqual([6, 5, 3, 4, 1, 0, 7, 2]);
  });

  it("makes the same element wherever the tensor ends", () => {
    expect([...normal(11, 100, 2)].slice(0, 10)).toEqual([...normal(11, 10, 2)]);
  });
});
