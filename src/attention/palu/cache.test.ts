import { expect, it } from "vitest";
import { CpuDevice } from "../../devices/index.ts";
import { type LatentRanks, latentLayout, latentTokenBytes, type PageStorage } from "../../ops/attention/index.ts";
import { allocateLatentCache, latentCapacity, type PaluSpec, paluKernelSpec } from "./index.ts";

/** Llama-2-7B, a layer: 32 heads of 128 channels. */
const llama = (storage: PageStorage, changes: Partial<PaluSpec> = {}): PaluSpec => ({
  numQHeads: 32,
  numKvHeads: 32,
  headDim: 128,
  maxRankK: 1024,
  maxRankV: 1024,
  storage,
  causal: true,
  smScale: 128 ** -0.5,
  ...changes,
});
const evenly = (rankK: number, rankV: number, numGroups: number): LatentRanks => ({
  ranksK: Array.from({ length: numGroups }, () => rankK / numGroups),
  ranksV: Array.from({ length: numGroups }, () => rankV / numGroups),
});
const fullTokenBytes = 2 * 32 * 128 * 2;

it.each([
  // The paper's 50 %: ranks of 1,024 for keys and 3,072 for values; the kernel's sizes of a quarter and an eighth of each head.
  [1024, 3072, 8, 0.5],
  [2048, 2048, 32, 0.5],
  [32 * 32, 32 * 32, 32, 0.75],
  [32 * 16, 32 * 16, 32, 0.875],
])("latents of ranks %i and %i in %i groups save their share of an f16 cache", (rankK, rankV, numGroups, saved) => {
  const bytes = latentTokenBytes(paluKernelSpec(llama("f16")), evenly(rankK, rankV, numGroups));
  expect(bytes).toBe((rankK + rankV) * 2);
  expect(1 - bytes / fullTokenBytes).toBe(saved);
});

it("unequal ranks take exactly their sum, with no padding to the largest", () => {
  const spec = paluKernelSpec(llama("f16", { valueStorage: "f8e4m3" }));
  expect(latentTokenBytes(spec, { ranksK: [15, 1], ranksV: [30, 7] })).toBe(16 * 2 + 37);
});

it("codes of few bits take their padded rows and their scales", () => {
  const spec = paluKernelSpec(llama({ kind: "grouped", bits: 4, groupSize: 32 }));
  // A row of 128: 64 bytes and 4 pairs of scales; 8 groups of keys and 8 of values of 384.
  expect(latentTokenBytes(spec, evenly(1024, 3072, 8))).toBe(8 * (64 + 4 * 8) + 8 * (192 + 12 * 8));
});

it("as many more pages fit into the same memory", () => {
  const layers = (ranks: number) => Array.from({ length: 32 }, () => evenly(ranks, ranks, 8));
  const memory = { numBytes: 2 ** 32, pageSize: 16 };
  const full = latentCapacity(llama("f16"), layers(4096), memory);
  expect(full).toBe(2 ** 32 / (32 * fullTokenBytes * 16));
  expect(latentCapacity(llama("f16"), layers(1024), memory)).toBe(4 * full);
  expect(latentCapacity(llama("f16"), layers(512), memory)).toBe(8 * full);
});

it("allocates what a token takes, and gives it back", async () => {
  const device = await CpuDevice.create({ threads: 1 });
  const before = device.stats().usedBytes;
  for (const storage of ["f16", "i8", { kind: "grouped", bits: 3, groupSize: 8 }] as const) {
    const ranks = evenly(64, 128, 8);
    const used = latentLayout(ranks, llama(storage));
    const cache = allocateLatentCache(device, used, { storage, numPages: 7, pageSize: 16 });
    expect(cache.numBytes).toBe(7 * 16 * latentTokenBytes(paluKernelSpec(llama(storage)), ranks));
    expect(cache.pages.k.shape).toEqual([7, 16, used.keyRow]);
    expect(cache.scales === undefined).toBe(storage === "f16");
    expect(device.stats().usedBytes - before).toBeGreaterThanOrEqual(cache.numBytes);
    cache.release();
    expect(device.stats().usedBytes).toBe(before);
  }
  await device.close();
});
