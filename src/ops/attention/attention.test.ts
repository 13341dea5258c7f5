import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  defaultSpec,
  type Lengths,
  largestError,
  onDevice,
  onReference,
  raggedCase,
  rounded,
} from "../../../test/fixtures/attention/ragged.ts";
import { CpuDevice } from "../../devices/index.ts";
import { bf16ToF32, e4m3ToF32, e5m2ToF32, f16ToF32 } from "../../tensor/index.ts";
import type { AttentionSpec } from "./contract.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

async function expectEqualsReference(
  spec: AttentionSpec,
  lengths: readonly Lengths[],
  threads?: number,
): Promise<void> {
  const given = raggedCase(spec, lengths, 1, 3);
  const got = await onDevice(device, given, threads);
  const want = onReference(given);
  expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
  expect(largestError(got.lse, want.lse)).toBeLessThan(2e-6);
}

const mixed: readonly Lengths[] = [
  { queryLen: 1, kvLen: 130 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 70, kvLen: 70 },
  { queryLen: 5, kvLen: 100 },
  { queryLen: 0, kvLen: 9 },
  { queryLen: 1, kvLen: 1 },
  { queryLen: 33, kvLen: 64 },
];

describe("attention on the cpu equals the reference", () => {
  it.each([4, 8, 20, 24, 40, 64, 80, 96, 120, 128, 192, 240, 256])("for head dimension %i", (headDim) =>
    expectEqualsReference(defaultSpec({ headDim }), mixed),
  );

  it.each([
    [1, 1],
    [3, 3],
    [5, 1],
    [6, 2],
    [12, 2],
    [16, 1],
    [40, 1],
  ])("for %i query heads on %i key/value heads", (numQHeads, numKvHeads) =>
    expectEqualsReference(defaultSpec({ numQHeads, numKvHeads }), mixed),
  );

  it.each([1, 2, 3, 5, 7, 16, 32, 33, 64, 200])("for pages of %i tokens", (pageSize) =>
    expectEqualsReference(defaultSpec({ pageSize }), mixed),
  );

  it.each([1, 2, 5, 31, 32, 33, 64, 1000])("for a window of %i keys", (slidingWindow) =>
    expectEqualsReference(defaultSpec({ slidingWindow, splitSize: 32 }), mixed, 100),
  );

  it.each([0.5, 5, 50])("for a soft cap of %f", (softCap) => expectEqualsReference(defaultSpec({ softCap }), mixed));

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("for %s pages", (storage) =>
    expectEqualsReference(defaultSpec({ storage, headDim: 40 }), mixed),
  );

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("for every value of %s pages", async (storage) => {
    // One key a sequence: out is the value itself, so each code shows what it was read as, infinities and NaN too.
    const numCodes = storage.startsWith("f8") ? 256 : 65536;
    const headDim = 256;
    const lengths = Array.from({ length: numCodes / headDim }, () => ({ queryLen: 1, kvLen: 1 }));
    const spec = defaultSpec({ storage, headDim, numQHeads: 1, numKvHeads: 1, pageSize: 1 });
    const given = raggedCase(spec, lengths);
    const decode = { f16: f16ToF32, bf16: bf16ToF32, f8e4m3: e4m3ToF32, f8e5m2: e5m2ToF32 }[storage];
    for (let s = 0; s < lengths.length; s++) {
      const at = given.batch.blockTables[s * given.batch.maxPages] * headDim;
      for (let d = 0; d < headDim; d++) given.vPages[at + d] = decode(s * headDim + d);
    }
    const { out } = await onDevice(device, given);
    // Encoding saturates the infinities of 8 bits.
    const expected = rounded(
      spec,
      Float32Array.from({ length: numCodes }, (_, code) => decode(code)),
    );
    expect(out.findIndex((value, code) => !Object.is(value, expected[code] + 0))).toBe(-1);
  });

  it.each([undefined, 5])("with ALiBi and a soft cap of %s", async (softCap) => {
    const spec = defaultSpec({ alibi: true, softCap, splitSize: 32, numQHeads: 6 });
    const given = { ...raggedCase(spec, mixed), alibiSlopes: Float32Array.of(0.5, 0.25, 0.125, -0.1, 0, 1) };
    const [got, want] = [await onDevice(device, given, 100), onReference(given)];
    expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(2e-6);
  });

  it("with scales on keys and values", async () => {
    const given = { ...raggedCase(defaultSpec({ splitSize: 32 }), mixed), kScale: 0.3, vScale: 1.7 };
    const [got, want] = [await onDevice(device, given, 100), onReference(given)];
    expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(2e-6);
  });

  it("on one thread without shared memory and relaxed SIMD", async () => {
    const plain = await CpuDevice.create({ threads: 1, sharedMemory: false, relaxedSimd: false });
    const given = raggedCase(defaultSpec({ storage: "f16", softCap: 8 }), mixed);
    expect(largestError((await onDevice(plain, given)).out, onReference(given).out)).toBeLessThan(3e-6);
    await plain.close();
  });

  it("without a causal mask", () => expectEqualsReference(defaultSpec({ causal: false, splitSize: 32 }), mixed, 100));

  it("without lse", async () => {
    const given = raggedCase(defaultSpec({ returnLse: false }), mixed);
    expect(largestError((await onDevice(device, given)).out, onReference(given).out)).toBeLessThan(3e-6);
  });

  it("for any ragged batch, split in any way", () => {
    const lengths = fc
      .record({ kvLen: fc.integer({ min: 0, max: 140 }), share: fc.double({ min: 0, max: 1, noNaN: true }) })
      .map(({ kvLen, share }) => ({ kvLen, queryLen: Math.round(kvLen * share) }));
    return fc.assert(
      fc.asyncProperty(
        fc.array(lengths, { maxLength: 5 }),
        fc.constantFrom(
          defaultSpec({ splitSize: 32 }),
          defaultSpec({ splitSize: 64, slidingWindow: 20, numQHeads: 6, pageSize: 3 }),
          defaultSpec({ storage: "f16", softCap: 3, splitSize: 32, numKvHeads: 1 }),
          defaultSpec({ causal: false, pageSize: 1 }),
        ),
        fc.constantFrom(1, 4, 1000),
        (batch, spec, threads) => expectEqualsReference(spec, batch, threads),
      ),
      { numRuns: 60, seed: 7 },
    );
  });

  it("for a large key that arrives late", async () => {
    const given = raggedCase(defaultSpec({ pageSize: 64, splitSize: 32 }), [{ queryLen: 1, kvLen: 200 }]);
    const page = given.batch.blockTables[3] * 64 * 32;
    for (let d = 0; d < 32; d++) given.kPages[page + 7 * 32 + d] = 300 * Math.sign(given.q[d % 16]);
    const [got, want] = [await onDevice(device, given, 100), onReference(given)];
    expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(2e-6);
  });
});

describe("rows without keys", () => {
  it("are zeros with lse -infinity behind the last sequence, though q is NaN there", async () => {
    const given = raggedCase(defaultSpec(), [{ queryLen: 2, kvLen: 9 }], 1, 40);
    const { out, lse } = await onDevice(device, given);
    expect([...out.subarray(2 * 64)].every((value) => Object.is(value, 0))).toBe(true);
    expect([...lse.subarray(2 * 4)].every((value) => value === -Infinity)).toBe(true);
    expect([...out.subarray(0, 2 * 64)].every(Number.isFinite)).toBe(true);
  });

  it("are zeros where a sequence may have more queries than keys", async () => {
    const given = raggedCase(defaultSpec(), [{ queryLen: 4, kvLen: 4 }]);
    const batch = { ...given.batch, kvLens: Int32Array.of(1), allowUnseeing: true };
    const { out, lse } = await onDevice(device, { ...given, batch });
    expect([...out.subarray(0, 3 * 64)].every((value) => value === 0)).toBe(true);
    expect(lse[3 * 4 - 1]).toBe(-Infinity);
    expect(lse[3 * 4]).toBeGreaterThan(-Infinity);
    expect(largestError(out, onReference({ ...given, batch }).out)).toBeLessThan(3e-6);
  });

  it("run as nothing at all for a batch without sequences", async () => {
    expect((await onDevice(device, raggedCase(defaultSpec(), []))).out).toHaveLength(0);
  });
});
