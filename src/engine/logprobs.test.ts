import { describe, expect, it } from "vitest";
import { logprobsOf, logSumExp } from "./logprobs.ts";

describe("logprobsOf", () => {
  const row = Float32Array.of(1, 3, 3, -2, 0.5);
  const total = Math.log([...row].reduce((sum, logit) => sum + Math.exp(logit), 0));

  it("gives the token's and the most likely ones', ties by token number", () => {
    const { tokenId, logprob, top } = logprobsOf(row, 3, 3);
    expect(tokenId).toBe(3);
    expect(logprob).toBeCloseTo(-2 - total, 12);
    expect(top.map((entry) => entry.tokenId)).toEqual([1, 2, 0]);
    expect(top[0].logprob).toBeCloseTo(3 - total, 12);
  });

  it("gives only the token's own when asked for 0, and all of them in order when asked for more than there are", () => {
    expect(logprobsOf(row, 0, 0).top).toEqual([]);
    expect(logprobsOf(row, 0, 9).top.map((entry) => entry.tokenId)).toEqual([1, 2, 0, 4, 3]);
  });

  it("does not overflow, and says NaN where the row does", () => {
    expect(logSumExp(Float32Array.of(1000, 1000))).toBeCloseTo(1000 + Math.LN2, 9);
    expect(logSumExp(Float32Array.of(-Infinity, 2))).toBe(2);
    expect(logSumExp(Float32Array.of(0, Number.NaN))).toBeNaN();
  });
});
