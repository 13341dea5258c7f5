import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectEqualsReference, expectNear, mixed } from "../../../test/fixtures/attention/equalsReference.ts";
import {
  defaultSpec,
  type Lengths,
  numbers,
  onDevice,
  onReference,
  type RaggedCase,
  raggedCase,
} from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import type { AttentionSpec } from "./contract.ts";

/** Whether query i of sequence s sees key t. */
type Sees = (s: number, i: number, t: number) => boolean;

/** A case under a mask. Sequences begin at bytes with gaps, everything beside a sequence's own bits is ones. */
function masked(changes: Partial<AttentionSpec>, lengths: readonly Lengths[], sees: Sees, padRows = 0): RaggedCase {
  const given = raggedCase(defaultSpec({ causal: false, customMask: true, ...changes }), lengths, 1, padRows);
  const indptr = new Int32Array(lengths.length);
  let numBytes = 3;
  for (const [s, { queryLen, kvLen }] of lengths.entries()) {
    indptr[s] = numBytes;
    numBytes += Math.ceil((queryLen * kvLen) / 8) + (s % 3);
  }
  const bits = new Uint8Array(numBytes).fill(255);
  for (const [s, { queryLen, kvLen }] of lengths.entries()) {
    for (let bit = 0; bit < queryLen * kvLen; bit++) {
      if (!sees(s, Math.floor(bit / kvLen), bit % kvLen)) bits[indptr[s] + (bit >> 3)] ^= 1 << (bit & 7);
    }
  }
  return { ...given, batch: { ...given.batch, customMask: { bits, indptr } } };
}

const randomly: Sees = (s, i, t) => numbers(1000 * s + 31 * i + t, 3)[2] > 0;

describe.each(Object.entries(testDevices))("attention equals the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  describe("under a mask of single pairs", () => {
    it.each<[string, Sees]>([
      ["that hides half of the pairs", randomly],
      ["that hides most of them", (s, i, t) => (t + i + s) % 29 === 0],
      ["that hides all keys of some queries", (s, i, t) => i % 2 === 0 && randomly(s, i, t)],
      ["that hides whole chunks", (_s, i, t) => t >= 64 || (i === 0 && t < 3)],
      ["that hides everything", () => false],
      ["that hides nothing", () => true],
    ])("%s, in any split", async (_what, sees) => {
      const given = masked({ splitSize: 32 }, mixed, sees, 3);
      for (const threads of [1, 100]) await expectEqualsReference(device, given, threads);
    });

    it("in contiguous rows with odd channels, ALiBi, a soft cap and sinks", async () => {
      const changes = { pageSize: undefined, headDim: 10, headDimV: 7, numQHeads: 6, alibi: true, sinks: true };
      const given = {
        ...masked({ ...changes, softCap: 3, splitSize: 32 }, mixed, randomly),
        alibiSlopes: Float32Array.of(0.5, 0.25, 0.125, -0.1, 0, 1),
        sinks: numbers(5, 6),
      };
      for (const threads of [1, 100]) await expectEqualsReference(device, given, threads);
    });

    it("as the causal one, to the bit", async () => {
      const spec = { splitSize: 32, numQHeads: 5, numKvHeads: 1 };
      const causal = await onDevice(device, raggedCase(defaultSpec(spec), mixed), 100);
      const lengthsOf = (s: number): Lengths => mixed[s];
      const sees: Sees = (s, i, t) => t <= lengthsOf(s).kvLen - lengthsOf(s).queryLen + i;
      expect(await onDevice(device, masked(spec, mixed, sees), 100)).toEqual(causal);
    });

    it("of any lengths", () =>
      fc.assert(
        fc.asyncProperty(
          fc.array(fc.record({ queryLen: fc.integer({ min: 0, max: 20 }), kvLen: fc.integer({ min: 20, max: 75 }) }), {
            maxLength: 3,
          }),
          fc.constantFrom(1, 3, 71),
          fc.constantFrom(1, 100),
          (lengths, numQHeads, threads) =>
            expectEqualsReference(
              device,
              masked({ splitSize: 32, numQHeads, numKvHeads: 1 }, lengths, randomly),
              threads,
            ),
        ),
        { numRuns: 12, seed: 11 },
      ));
  });

  describe("with sinks", () => {
    const withSinks = (changes: Partial<AttentionSpec>, sinks: Float32Array): RaggedCase => ({
      ...raggedCase(defaultSpec({ sinks: true, splitSize: 32, numQHeads: sinks.length, ...changes }), mixed, 1, 3),
      sinks,
    });

    it.each<[string, Partial<AttentionSpec>]>([
      ["alone", {}],
      ["and a window", { slidingWindow: 16 }],
      ["and values of another length", { headDim: 10, headDimV: 22 }],
      ["and a soft cap", { softCap: 2 }],
      ["without a causal mask", { causal: false }],
    ])("%s, in any split", async (_what, changes) => {
      for (const threads of [1, 5, 100]) {
        await expectEqualsReference(device, withSinks(changes, numbers(9, 6)), threads);
      }
    });

    it("that are absent, weak, strong, or beyond every logit", async () => {
      const given = withSinks({}, Float32Array.of(-Infinity, -200, 3, 60, 90, 5000));
      const { out, lse } = await onDevice(device, given, 100);
      expectNear({ out, lse }, onReference(given));
      // The last head's sink takes everything.
      expect([...out.subarray(5 * 16, 6 * 16)].every((value) => value === 0)).toBe(true);
    });

    it("that the lse leaves out", async () => {
      const given = withSinks({}, numbers(9, 4));
      const { lse } = await onDevice(device, given);
      expect(lse).toEqual((await onDevice(device, { ...given, spec: { ...given.spec, sinks: false } })).lse);
    });
  });

  it.each(["e", "2"] as const)("with the lse in base %s", async (lseBase) => {
    await expectEqualsReference(device, raggedCase(defaultSpec({ lseBase, splitSize: 32 }), mixed, 1, 3), 100);
  });

  describe("with a mask value that is added instead of hiding", () => {
    it.each<[string, Partial<AttentionSpec>]>([
      ["alone", {}],
      ["and a window", { slidingWindow: 20 }],
      ["and a window in contiguous rows", { slidingWindow: 3, pageSize: undefined }],
      ["and a soft cap", { softCap: 2 }],
    ])("%s, in any split", async (_what, changes) => {
      // A value near the logits, so that hidden keys are seen to weigh something.
      const given = raggedCase(defaultSpec({ maskValue: -2.5, splitSize: 32, ...changes }), mixed, 1, 3);
      for (const threads of [1, 100]) await expectEqualsReference(device, given, threads);
      const { maskValue: _, ...hiding } = given.spec;
      expect(onReference(given).lse).not.toEqual(onReference({ ...given, spec: hiding }).lse);
    });

    it("as large as JAX's: a row that sees no key averages all of them", async () => {
      const maskValue = -0.7 * 3.4028234663852886e38;
      const given = raggedCase(defaultSpec({ maskValue, splitSize: 32 }), [{ queryLen: 60, kvLen: 60 }]);
      const batch = { ...given.batch, kvLens: Int32Array.of(40), allowUnseeing: true };
      const [got, want] = [await onDevice(device, { ...given, batch }, 100), onReference({ ...given, batch })];
      const seeing = 20 * 4;
      expectNear({ out: got.out, lse: got.lse.subarray(seeing) }, { out: want.out, lse: want.lse.subarray(seeing) });
      expect([...got.lse.subarray(0, seeing)].every((lse) => lse < -1e38)).toBe(true);
      expect(want.out.subarray(0, 16)).toEqual(want.out.subarray(19 * 64, 19 * 64 + 16));
    });
  });
});
