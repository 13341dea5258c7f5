import { describe, expect, it } from "vitest";
import {
  attentionCost,
  batchLengths,
  type CostSpec,
  latentAttentionCost,
  latentTokenBytes,
  mergeCost,
  rowBytes,
  tokenBytes,
  visibleKeys,
  visiblePairs,
} from "./costs.ts";

const gqa: CostSpec = { headDim: 128, numQHeads: 32, numKvHeads: 8, storage: "f16", causal: true };

/** Counts visible pairs and keys by going through all of them. */
function countVisible(spec: CostSpec, queryLen: number, kvLen: number): { pairs: number; keys: number } {
  const seen = new Set<number>();
  let pairs = 0;
  for (let i = 0; i < queryLen; i++) {
    const position = kvLen - queryLen + i;
    for (let t = 0; t < kvLen; t++) {
      if (spec.causal && t > position) continue;
      if (spec.slidingWindow !== undefined && t <= position - spec.slidingWindow) continue;
      seen.add(t);
      pairs++;
    }
  }
  return { pairs, keys: seen.size };
}

describe("what is visible", () => {
  const lengths = [0, 1, 2, 5, 9].flatMap((queryLen) => [0, 1, 4, 9, 17].map((kvLen) => ({ queryLen, kvLen })));
  const specs: CostSpec[] = [
    gqa,
    { ...gqa, causal: false },
    ...[1, 3, 8, 40].map((slidingWindow): CostSpec => ({ ...gqa, slidingWindow })),
  ];
  it.each(specs)("is what counting finds, with %o", (spec) => {
    for (const { queryLen, kvLen } of lengths) {
      const counted = countVisible(spec, queryLen, kvLen);
      expect(visiblePairs(spec, { queryLen, kvLen })).toBe(counted.pairs);
      // A query before position 0 sees nothing; all other sequences read what their rows see.
      if (queryLen <= kvLen) expect(visibleKeys(spec, { queryLen, kvLen })).toBe(counted.keys);
    }
  });

  it("is every key where masking only lowers logits", () => {
    const spec: CostSpec = { ...gqa, slidingWindow: 3, maskValue: -1e30 };
    expect(visiblePairs(spec, { queryLen: 4, kvLen: 10 })).toBe(40);
    expect(visibleKeys(spec, { queryLen: 4, kvLen: 10 })).toBe(10);
  });
});

describe("the bytes of a row", () => {
  it("count packed codes and scales", () => {
    expect(rowBytes("f16", 80)).toBe(160);
    expect(rowBytes("i8", 80)).toBe(84);
    expect(rowBytes({ kind: "grouped", bits: 4, groupSize: 32 }, 128)).toBe(64 + 4 * 8);
    expect(rowBytes({ kind: "grouped", bits: 3, groupSize: 0 }, 40)).toBe(16 + 8);
  });

  it("make FlashMLA's token 656 bytes and DeepSeek's latents 1.76 % of the expanded cache", () => {
    const mla: CostSpec = {
      headDim: 576,
      headDimV: 512,
      numQHeads: 128,
      numKvHeads: 1,
      mla: { ropeDim: 64 },
      storage: { kind: "tiled", tile: 128 },
      valueStorage: "bf16",
      causal: true,
    };
    expect(tokenBytes(mla)).toBe(656);
    const latents = tokenBytes({ ...mla, storage: "f16", valueStorage: "f16" });
    const expanded = tokenBytes({ ...gqa, numQHeads: 128, numKvHeads: 128 });
    expect((100 * latents) / expanded).toBeCloseTo(1.76, 2);
    expect(tokenBytes({ ...mla, headDim: 512, mla: { ropeDim: 0 }, storage: "f16" })).toBe(1024);
  });
});

describe("attention", () => {
  it("takes 2 (headDim + headDimV) operations for each query head and pair, and reads each key once", () => {
    const cost = attentionCost(gqa, [{ queryLen: 1, kvLen: 1000 }]);
    expect(cost.operations).toBe(2 * 1000 * 32 * 256);
    expect(cost.bytes).toBe(1000 * 2 * 8 * 128 * 2 + 2 * 32 * 128 * 4);
  });

  it("adds up over a ragged list, a window read by its width", () => {
    const spec: CostSpec = { ...gqa, slidingWindow: 64, returnLse: true };
    const batch = { numSeqs: 3, queryIndptr: Int32Array.of(0, 1, 101, 101), kvLens: Int32Array.of(500, 100, 7) };
    const cost = attentionCost(spec, batchLengths(batch));
    const pairs = 64 + (64 * 65) / 2 + 36 * 64;
    expect(cost.operations).toBe(2 * pairs * 32 * 256);
    expect(cost.bytes).toBe((64 + 100) * tokenBytes(spec) + 101 * 4 * (2 * 32 * 128 + 32));
  });

  it("over latents is DeepSeek's count: 2 (c + rope + c) for each head and key", () => {
    const spec: CostSpec = { ...gqa, headDim: 576, headDimV: 512, numQHeads: 16, numKvHeads: 1, mla: { ropeDim: 64 } };
    const cost = attentionCost(spec, [{ queryLen: 1, kvLen: 300 }]);
    expect(cost.operations).toBe(2 * 300 * 16 * (576 + 512));
    expect(cost.bytes).toBe(300 * 576 * 2 + 16 * (576 + 512) * 4);
  });
});

describe("attention over Palu's latents", () => {
  // Two groups of two key/value heads, each with three query heads.
  const ranks = { ranksK: [32, 48], ranksV: [64, 16] };
  const spec: CostSpec = {
    headDim: 64,
    headDimV: 64,
    numQHeads: 12,
    numKvHeads: 4,
    storage: "f16",
    causal: true,
    latent: { maxRankK: 48, keys: "rebuilt", bias: true },
  };
  const lengths = [{ queryLen: 1, kvLen: 100 }];

  it("rebuilds each key once for all query heads of its key/value head", () => {
    const rebuild = 2 * 100 * (2 * 32 + 2 * 48) * 64;
    const scores = 2 * 100 * 12 * 64;
    const values = 2 * 100 * (6 * 64 + 6 * 16);
    expect(latentAttentionCost(spec, ranks, lengths).operations).toBe(rebuild + scores + values);
    expect(latentAttentionCost(spec, ranks, lengths, 3).operations).toBe(3 * rebuild + scores + values);
  });

  it("moves the latents, U_k, its bias, queries and outputs", () => {
    const upAndBias = 4 * ((2 * 32 + 2 * 48) * 64 + 4 * 64);
    const rows = 4 * (12 * 64 + 6 * 64 + 6 * 16);
    expect(latentTokenBytes(spec, ranks)).toBe(2 * (32 + 48 + 64 + 16));
    expect(latentAttentionCost(spec, ranks, lengths).bytes).toBe(100 * 320 + rows + upAndBias);
  });

  it("multiplies absorbed queries with as many channels as each group has", () => {
    const absorbed: CostSpec = { ...spec, headDim: 48, latent: { maxRankK: 48, keys: "absorbed" } };
    const cost = latentAttentionCost(absorbed, ranks, lengths);
    expect(cost.operations).toBe(2 * 100 * (6 * 32 + 6 * 48 + 6 * 64 + 6 * 16));
    expect(cost.bytes).toBe(100 * 320 + 4 * (12 * 48 + 6 * 64 + 6 * 16));
  });

  it("takes half of Llama 2's cache at half of its rank", () => {
    const half = { ranksK: Array<number>(8).fill(256), ranksV: Array<number>(8).fill(256) };
    const llama: CostSpec = { ...gqa, numQHeads: 32, numKvHeads: 32 };
    expect(latentTokenBytes({ ...llama, headDimV: 256 }, half) / tokenBytes(llama)).toBe(0.5);
  });
});

it("merging reads every state and writes one", () => {
  const cost = mergeCost({ numQHeads: 4, headDim: 192, headDimV: 128 }, 10, 3);
  expect(cost).toEqual({ operations: 2 * 10 * 4 * 3 * 128, bytes: 4 * 10 * 4 * 4 * 129 });
});
