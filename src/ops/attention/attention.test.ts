import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectEqualsReference, expectNear, mixed } from "../../../test/fixtures/attention/equalsReference.ts";
import {
  defaultSpec,
  type Lengths,
  onDevice,
  onReference,
  raggedCase,
  withPageLists,
} from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import type { AttentionSpec } from "./contract.ts";

describe.each(Object.entries(testDevices))("attention equals the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  const check = (changes: Partial<AttentionSpec>, lengths = mixed, threads?: number): Promise<void> =>
    expectEqualsReference(device, raggedCase(defaultSpec(changes), lengths, 1, 3), threads);

  const few: readonly Lengths[] = [
    { queryLen: 1, kvLen: 70 },
    { queryLen: 0, kvLen: 0 },
    { queryLen: 9, kvLen: 33 },
  ];

  it.each([1, 2, 3, 7, 10, 16, 22, 33, 64, 80, 96, 112, 120, 128, 240, 256])("for head dimension %i", (headDim) =>
    check({ headDim }, few),
  );

  it.each([
    [16, 24],
    [24, 16],
    [10, 7],
    [192, 128],
    [33, 1],
    [1, 40],
  ])("for keys of %i and values of %i channels", (headDim, headDimV) => check({ headDim, headDimV }, few));

  it.each([1, 2, 3, 4, 5, 6, 7, 8, 16, 33, 71])("for %i query heads on one key/value head", (numQHeads) =>
    check({ numQHeads, numKvHeads: 1, splitSize: 32 }, few, 50),
  );

  it.each([
    [3, 3],
    [40, 8],
    [12, 2],
    [71, 71],
  ])("for %i query heads on %i key/value heads", (numQHeads, numKvHeads) => check({ numQHeads, numKvHeads }, few));

  it.each([1, 3, 5, 16, 33, 64, 200, undefined])("for pages of %s tokens", (pageSize) => check({ pageSize }));

  it.each([1, 3, 16, 64])("for lists of pages of %i tokens, one behind the other", (pageSize) => {
    const given = raggedCase(defaultSpec({ pageSize, splitSize: 32 }), mixed, 1, 3);
    return expectEqualsReference(device, { ...given, batch: withPageLists(given) }, 100);
  });

  it.each([1, 5, 32, 33, 1000])("for a window of %i keys", (slidingWindow) =>
    check({ slidingWindow, splitSize: 32 }, mixed, 100),
  );

  it.each([0.5, 50])("for a soft cap of %f", (softCap) => check({ softCap }));

  it("without a causal mask", () => check({ causal: false, splitSize: 32 }, mixed, 100));

  it("without lse", () => check({ returnLse: false }));

  it("with ALiBi, a soft cap, a window, scales and odd channels together, in any split", async () => {
    const spec = { softCap: 4, slidingWindow: 37, splitSize: 32, numQHeads: 6, headDim: 10, headDimV: 7, alibi: true };
    const alibiSlopes = Float32Array.of(0.5, 0.25, 0.125, -0.1, 0, 1);
    const given = { ...raggedCase(defaultSpec(spec), mixed), alibiSlopes, kScale: 0.3, vScale: 1.7 };
    for (const threads of [1, 100]) await expectEqualsReference(device, given, threads);
  });

  it("for any ragged batch, split in any way", () => {
    const lengths = fc
      .record({ kvLen: fc.integer({ min: 0, max: 140 }), share: fc.double({ min: 0, max: 1, noNaN: true }) })
      .map(({ kvLen, share }) => ({ kvLen, queryLen: Math.round(kvLen * share) }));
    return fc.assert(
      fc.asyncProperty(
        fc.array(lengths, { maxLength: 4 }),
        fc.constantFrom<Partial<AttentionSpec>>(
          { splitSize: 32 },
          { splitSize: 64, slidingWindow: 20, numQHeads: 6, pageSize: 3 },
          { storage: "f16", softCap: 3, splitSize: 32, numKvHeads: 1, headDim: 10 },
          { causal: false, pageSize: 1, headDimV: 5 },
          { pageSize: undefined, splitSize: 32 },
        ),
        fc.constantFrom(1, 4, 1000),
        (batch, spec, threads) => check(spec, batch, threads),
      ),
      { numRuns: 25, seed: 7 },
    );
  });

  it("for a large key that arrives late", async () => {
    const given = raggedCase(defaultSpec({ pageSize: 64, splitSize: 32 }), [{ queryLen: 1, kvLen: 200 }]);
    const page = given.batch.blockTables[3] * 64 * 32;
    for (let d = 0; d < 32; d++) given.kPages[page + 7 * 32 + d] = 300 * Math.sign(given.q[d % 16]);
    await expectEqualsReference(device, given, 100);
  });

  describe("in rows without keys", () => {
    it("with zeros and lse -infinity behind the last sequence, though q is NaN there", async () => {
      const { out, lse } = await onDevice(device, raggedCase(defaultSpec(), [{ queryLen: 2, kvLen: 9 }], 1, 40));
      expect([...out.subarray(2 * 64)].every((value) => Object.is(value, 0))).toBe(true);
      expect([...lse.subarray(2 * 4)].every((value) => value === -Infinity)).toBe(true);
      expect([...out.subarray(0, 2 * 64)].every(Number.isFinite)).toBe(true);
    });

    it("where a sequence may have more queries than keys", async () => {
      const given = raggedCase(defaultSpec(), [{ queryLen: 4, kvLen: 4 }]);
      const batch = { ...given.batch, kvLens: Int32Array.of(1), allowUnseeing: true };
      const { out, lse } = await onDevice(device, { ...given, batch });
      expect([...out.subarray(0, 3 * 64)].every((value) => value === 0)).toBe(true);
      expect(lse[3 * 4 - 1]).toBe(-Infinity);
      expect(lse[3 * 4]).toBeGreaterThan(-Infinity);
      expectNear({ out, lse }, onReference({ ...given, batch }));
    });

    it("for a batch without sequences", async () => {
      expect((await onDevice(device, raggedCase(defaultSpec(), []))).out).toHaveLength(0);
      const { lse } = await onDevice(device, raggedCase(defaultSpec(), [], 1, 2));
      expect([...lse]).toEqual(new Array(8).fill(-Infinity));
    });
  });
});
