import { describe, expect, it } from "vitest";
import {
  absorbThreshold,
  type MlaShape,
  mlaAbsorbedOperations,
  mlaElements,
  mlaMaterialisedOperations,
  mlaVanillaOperations,
  mlaWeights,
} from "./mlaCosts.ts";

const deepSeekV2: MlaShape = {
  hiddenSize: 5120,
  numHeads: 128,
  qLoraRank: 1536,
  kvLoraRank: 512,
  qkNopeHeadDim: 128,
  qkRopeHeadDim: 64,
  vHeadDim: 128,
};
const deepSeekV2Lite: MlaShape = { ...deepSeekV2, hiddenSize: 2048, numHeads: 16, qLoraRank: undefined };

describe("a layer of DeepSeek V2 at 10000 keys", () => {
  it("takes 1 % of the operations in decoding when weights are absorbed, and 3.4 times as many in prefill", () => {
    const ratio = (queryLen: number): number =>
      mlaMaterialisedOperations(deepSeekV2, queryLen, 10_000) / mlaVanillaOperations(deepSeekV2, queryLen, 10_000);
    expect(ratio(1).toFixed(6)).toBe("0.010941");
    expect(ratio(10_000).toFixed(3)).toBe("3.360");
  });

  it("holds about as much in decoding, and 2.3 times as much in prefill", () => {
    const ratio = (queryLen: number): number =>
      mlaElements(deepSeekV2, queryLen, 10_000, "materialised") / mlaElements(deepSeekV2, queryLen, 10_000, "vanilla");
    expect(ratio(1).toFixed(3)).toBe("1.168");
    expect(ratio(10_000).toFixed(3)).toBe("2.287");
  });

  it("has 3.47 times the weights when they are multiplied beforehand", () => {
    const millions = (form: "vanilla" | "materialised"): number => {
      const { query, up, output } = mlaWeights(deepSeekV2, form);
      return (query + up + output) / 1e6;
    };
    expect(millions("materialised").toFixed(1)).toBe("436.2");
    expect(millions("vanilla").toFixed(1)).toBe("125.8");
    expect((millions("materialised") / millions("vanilla")).toFixed(2)).toBe("3.47");
  });
});

describe("the threshold of absorbing", () => {
  const kvLens = [128, 512, 1000, 4096, 10_000, 65_536];
  const forms = [
    { form: "materialised", expected: [7, 23, 40, 95, 129, 163], operations: mlaMaterialisedOperations },
    { form: "runtime", expected: [74, 129, 146, 164, 168, 171], operations: mlaAbsorbedOperations },
  ] as const;

  it.each(forms)("of $form absorption is $expected", ({ form, expected }) => {
    expect(kvLens.map((kvLen) => absorbThreshold(deepSeekV2, kvLen, form))).toEqual(expected);
  });

  it.each(forms)("of $form absorption is where it begins to take more operations", ({ form, operations }) => {
    for (const shape of [deepSeekV2, deepSeekV2Lite]) {
      for (const kvLen of [1, ...kvLens]) {
        const threshold = absorbThreshold(shape, kvLen, form);
        const loses = (queryLen: number): boolean =>
          operations(shape, queryLen, kvLen) > mlaVanillaOperations(shape, queryLen, kvLen);
        expect([loses(threshold), loses(threshold - 1)]).toEqual([true, false]);
      }
    }
  });

  it("is infinite where the latent is no wider than a head", () => {
    expect(absorbThreshold({ ...deepSeekV2, kvLoraRank: 64 }, 1000, "materialised")).toBe(Infinity);
  });
});

it("queries without a low rank come from the hidden state", () => {
  expect(mlaWeights(deepSeekV2Lite, "vanilla")).toEqual({
    query: 2048 * 16 * 128,
    queryRope: 2048 * 16 * 64,
    up: 512 * 16 * 256,
    output: 16 * 128 * 2048,
  });
});
