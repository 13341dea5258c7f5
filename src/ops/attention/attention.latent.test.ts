import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectNear, mixed } from "../../../test/fixtures/attention/equalsReference.ts";
import {
  type LatentCase,
  latentCase,
  latentSpec,
  latentsOnDevice,
  latentsOnReference,
} from "../../../test/fixtures/attention/latents.ts";
import { type Lengths, numbers } from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import { RopeTable } from "../rope/index.ts";
import type { AttentionSpec, KeyRopeSpec, LatentSpec } from "./contract.ts";
import type { LatentRanks } from "./latent.ts";

const few: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 9, kvLen: 33 },
  { queryLen: 3, kvLen: 3 },
];

/** Ranks of one head each, of two groups, of all heads together: 4 key/value heads. */
const granularities: readonly [string, LatentRanks][] = [
  ["one head a group", { ranksK: [12, 5, 16, 1], ranksV: [7, 16, 2, 9] }],
  ["two heads a group", { ranksK: [24, 7], ranksV: [9, 30] }],
  ["all heads together", { ranksK: [40], ranksV: [33] }],
];
const heads = { numQHeads: 8, numKvHeads: 4, splitSize: 32 };
const [, unequal] = granularities[1];

const tableFor = ({ style, dim }: KeyRopeSpec, numPositions: number): Float32Array =>
  new RopeTable({ headDim: dim, rotaryDim: dim, style, theta: 500, scaling: { type: "default" } }).rows(numPositions);

const latentOf = (changes: Partial<LatentSpec>): LatentSpec => ({ maxRankK: 24, keys: "rebuilt", ...changes });

describe.each(Object.entries(testDevices))("attention over latents equals the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  async function check(given: LatentCase, threads = 100): Promise<void> {
    expectNear(await latentsOnDevice(device, given, threads), latentsOnReference(given));
  }

  describe.each(granularities)("with %s", (_what, ranks) => {
    it.each([1, 3, 16, undefined])("in pages of %s tokens", (pageSize) =>
      check(latentCase(latentSpec(ranks, { ...heads, pageSize }), ranks, few)),
    );

    it("in any split, with keys of an odd dimension", async () => {
      const given = latentCase(latentSpec(ranks, { ...heads, headDim: 13 }), ranks, mixed);
      for (const threads of [1, 100]) await check(given, threads);
    });

    it("with absorbed queries", () => {
      const maxRankK = Math.max(...ranks.ranksK);
      const latent = { maxRankK, keys: "absorbed" } as const;
      return check(latentCase(latentSpec(ranks, { ...heads, headDim: maxRankK, latent }), ranks, few));
    });

    it("quantised, with a bias, rotated, and the last tokens apart", () => {
      const rope = { style: "halves", dim: 16 } as const;
      const latent = { maxRankK: Math.max(...ranks.ranksK), keys: "rebuilt", bias: true, recent: "f16" } as const;
      const storage = { kind: "grouped", bits: 3, groupSize: 8 } as const;
      const valueStorage = { kind: "grouped", bits: 4, groupSize: 0 } as const;
      const spec = latentSpec(ranks, { ...heads, rope, latent, storage, valueStorage });
      const given = latentCase(spec, ranks, few, { capacity: 20, tokens: 17 });
      return check({ ...given, ropeTable: tableFor(rope, 70) });
    });
  });

  it.each([
    "f16",
    "bf16",
    "f8e4m3",
    "f8e5m2",
    "i8",
    { kind: "grouped", bits: 2, groupSize: 8 },
    { kind: "grouped", bits: 8, groupSize: 16 },
    { kind: "grouped", bits: 3, groupSize: 0 },
    { kind: "tiled", tile: 8 },
  ] as const)("in pages of %j", (storage) =>
    check(latentCase(latentSpec(unequal, { ...heads, storage, pageSize: 3 }), unequal, few)),
  );

  it.each([
    ["f32", "i8"],
    ["i8", "f16"],
    [{ kind: "grouped", bits: 4, groupSize: 8 }, "bf16"],
    ["bf16", { kind: "tiled", tile: 16 }],
  ] as const)("with keys of %j and values of %j", (storage, valueStorage) =>
    check(latentCase(latentSpec(unequal, { ...heads, storage, valueStorage, pageSize: 3 }), unequal, few)),
  );

  it.each<KeyRopeSpec>([
    { style: "halves", dim: 16, queries: true },
    { style: "interleaved", dim: 16, queries: true },
    { style: "interleaved", dim: 6, offset: 5 },
  ])("with a bias before the rotation %j", (rope) => {
    const given = latentCase(latentSpec(unequal, { ...heads, rope, latent: latentOf({ bias: true }) }), unequal, few);
    const positionOffsets = Int32Array.of(1000, 0, 7, 1);
    return check({ ...given, batch: { ...given.batch, positionOffsets }, ropeTable: tableFor(rope, 1070) });
  });

  it.each([
    [1, 1],
    [7, 5],
    [32, 32],
    [100, 100],
  ])("with windows of %i tokens that hold the last %i", async (capacity, tokens) => {
    for (const recent of ["f32", "f16"] as const) {
      const spec = latentSpec(unequal, { ...heads, pageSize: 3, storage: "i8", latent: latentOf({ recent }) });
      await check(latentCase(spec, unequal, few, { capacity, tokens }));
    }
  });

  it.each<[string, Partial<AttentionSpec>]>([
    ["a window", { slidingWindow: 20 }],
    ["a soft cap", { softCap: 2 }],
    ["no causal mask", { causal: false }],
  ])("with %s, ALiBi and sinks", (_what, changes) => {
    const given = latentCase(latentSpec(unequal, { ...heads, alibi: true, sinks: true, ...changes }), unequal, few);
    return check({ ...given, alibiSlopes: numbers(3, 8), sinks: numbers(4, 8) });
  });

  it("with ranks that change from layer to layer under one plan's spec", async () => {
    const layers = [unequal, { ranksK: [3, 24], ranksV: [30, 1] }, { ranksK: [8], ranksV: [8] }];
    const spec = latentSpec(unequal, { ...heads, headDim: 11 });
    const before = device.stats().numKernels;
    for (const ranks of layers) await check(latentCase(spec, ranks, few));
    expect(device.stats().numKernels - before).toBe(2);
  });
});
