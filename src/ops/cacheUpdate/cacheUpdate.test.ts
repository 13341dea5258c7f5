import fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  difference,
  layouts,
  makePool,
  movedTo,
  type PoolShape,
  randomBytes,
  storages,
} from "../../../test/ops/storedPages.ts";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { bf16FromF32 } from "../../tensor/index.ts";
import { appendRows, type KvPages, recordAppendKv } from "../appendKv/index.ts";
import type { PageStorage } from "../attention/storage.ts";
import {
  checkSlices,
  getBatchIndicesPositions,
  type KvCacheUpdateArgs,
  kvCacheUpdate,
  recordKvCacheUpdate,
  recordReshapeAndCache,
  slotMappingOf,
} from "./index.ts";

/** Pages with keys at even and values at odd heads, as one cache of 2 * numKvHeads heads. */
function combinedPool(storage: PageStorage, numHeads: number, channels: number, numPages: number, pageSize: number) {
  const { k, numBytes } = makePool({ storage, layout: "slots first", numPages, pageSize, numHeads, channels });
  return { cache: k, numBytes };
}

describe.each(Object.entries(testDevices))("on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  describe("recordKvCacheUpdate", () => {
    // cache start, new start, length: a part of a page, its end, a whole page, and a column past numSlices that is not read.
    const slices = [5, 12, 32, 99, 9, 0, 1, -7, 3, 4, 8, 2 ** 30];
    const [numPages, pageSize, numTokens, numSlices] = [6, 8, 12, 3];

    it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
      "writes the slices of f32 rows as %s",
      async (_, storage) => {
        const [numHeads, headDim] = [4, 24];
        const { cache, numBytes } = combinedPool(storage, numHeads, headDim, numPages, pageSize);
        const newKv = normals(numTokens * numHeads * headDim, 1);
        const memory = randomBytes(numBytes, 2);
        const device = test.bytes([numBytes], "u8", memory);
        const spec = { numHeads, headDim, storage };
        await test.run((recorder) =>
          recordKvCacheUpdate(recorder, spec, {
            newKv: test.f32([numTokens, numHeads, headDim], newKv),
            slices: test.i32([3, 4], slices),
            slicesOnHost: slices,
            numSlices,
            cache: movedTo(device.pointer, cache),
          }),
        );
        kvCacheUpdate(memory, spec, newKv, slices, numSlices, cache);
        expect(difference(test.readBytes(device), memory)).toBeUndefined();
      },
    );

    it("copies rows of the cache's own type bit for bit", async () => {
      for (const [numHeads, headDim] of [
        [2, 64],
        [6, 13],
      ]) {
        const { cache, numBytes } = combinedPool("bf16", numHeads, headDim, numPages, pageSize);
        const newKv = bf16FromF32(normals(numTokens * numHeads * headDim, 1));
        newKv[5] = 0x7fc1;
        const memory = randomBytes(numBytes, 2);
        const device = test.bytes([numBytes], "u8", memory);
        const spec = { numHeads, headDim, storage: "bf16", source: "bf16" } as const;
        await test.run((recorder) =>
          recordKvCacheUpdate(recorder, spec, {
            newKv: test.bytes([numTokens, numHeads, headDim], "bf16", newKv),
            slices: test.i32([3, 4], slices),
            slicesOnHost: slices,
            numSlices,
            cache: movedTo(device.pointer, cache),
          }),
        );
        kvCacheUpdate(memory, spec, newKv, slices, numSlices, cache);
        expect(difference(test.readBytes(device), memory)).toBeUndefined();
      }
    });

    it("names what is wrong", async () => {
      const { cache, numBytes } = combinedPool("f32", 2, 4, 2, 4);
      const device = test.bytes([numBytes], "u8", new Uint8Array(numBytes));
      const good: KvCacheUpdateArgs = {
        newKv: test.f32([3, 2, 4], new Float32Array(24)),
        slices: test.i32([3, 1], [0, 0, 3]),
        slicesOnHost: [0, 0, 3],
        numSlices: 1,
        cache: movedTo(device.pointer, cache),
      };
      const record =
        (changed: object, changedSpec: object = {}) =>
        () =>
          test.run((recorder) =>
            recordKvCacheUpdate(
              recorder,
              { numHeads: 2, headDim: 4, storage: "f32", ...changedSpec },
              { ...good, ...changed },
            ),
          );
      await expect(record({})()).resolves.toBeUndefined();
      await expect(record({ newKv: { ...good.newKv, shape: [3, 2, 5] } })).rejects.toThrow("newKv must have rows of 8");
      await expect(record({ newKv: { ...good.newKv, type: "f16" } })).rejects.toThrow(
        "newKv must be of type f32, got f16",
      );
      await expect(record({}, { source: "f16" })).rejects.toThrow(
        'source must be f32 or that of the cache, "f32", got f16',
      );
      await expect(record({ numSlices: 2 })).rejects.toThrow("slices must have shape [3, at least 2], got [3, 1]");
      await expect(record({ numSlices: -1 })).rejects.toThrow("numSlices must be a whole number of at least 0, got -1");
      await expect(record({ slices: { ...good.slices, type: "f32" } })).rejects.toThrow(
        "slices must be of type i32, got f32",
      );
      const { pointer } = good.newKv;
      await expect(record({ newKv: { ...good.newKv, pointer: pointer + 1 } })).rejects.toThrow(
        `newKv.pointer must be a multiple of 4, got ${pointer + 1}`,
      );
      await expect(record({ slicesOnHost: [0, 0] })).rejects.toThrow("slicesOnHost must have the 3 entries of slices");
      await expect(record({ slicesOnHost: [2, 0, 3] })).rejects.toThrow("must lie in one page of 4 slots");
    });
  });

  describe("recordReshapeAndCache", () => {
    /** vLLM's grid: 42 tokens and 8 heads. */
    it.each([
      { headDim: 16, pageSize: 8, numPages: 10000, storage: "f8e4m3" },
      { headDim: 80, pageSize: 8, numPages: 1024, storage: "f16" },
      { headDim: 112, pageSize: 16, numPages: 128, storage: "bf16" },
      { headDim: 120, pageSize: 16, numPages: 128, storage: "f8e5m2" },
      { headDim: 256, pageSize: 32, numPages: 64, storage: "f32" },
    ] as const)("scatters 42 tokens over $numPages pages of $pageSize x 8 x $headDim $storage", async (shape) => {
      const { headDim, pageSize, numPages, storage } = shape;
      const numHeads = 8;
      const pool = makePool({ ...shape, layout: "slots first", numHeads, channels: headDim });
      const memory = new Uint8Array(pool.numBytes).fill(0xa5);
      const device = test.bytes([pool.numBytes], "u8", memory);
      const numSlots = numPages * pageSize;
      const slots = Int32Array.from({ length: 42 }, (_, i) => (i % 8 === 3 ? -1 : (i * 9973 + 11) % numSlots));
      const [keys, values] = [1, 2].map((seed) => normals(42 * numHeads * headDim, seed));
      const scales = { kScale: 0.5, vScale: 0.25 };
      await test.run((recorder) =>
        recordReshapeAndCache(
          recorder,
          { numKvHeads: numHeads, headDim, storage },
          {
            key: test.f32([42, numHeads, headDim], keys),
            value: test.f32([42, numHeads, headDim], values),
            keyCache: movedTo(device.pointer, pool.k),
            valueCache: movedTo(device.pointer, pool.v),
            slotMapping: test.i32([42], slots),
            ...scales,
          },
        ),
      );
      const rows = { storage, numHeads, channels: headDim };
      appendRows(memory, { ...rows, values: keys, divisor: scales.kScale }, slots, pool.k);
      appendRows(memory, { ...rows, values, divisor: scales.vScale }, slots, pool.v);
      expect(difference(test.readBytes(device), memory)).toBeUndefined();
    });

    it("names its own arguments", async () => {
      const key = test.f32([2, 8], new Float32Array(16));
      const keyCache: KvPages = { pointer: key.pointer, type: "f32", numSlots: 2 };
      const slotMapping = test.i32([2], [0, 1]);
      const spec = { numKvHeads: 2, headDim: 4, storage: "f32" } as const;
      const record = (changed: object) =>
        test.run((recorder) =>
          recordReshapeAndCache(recorder, spec, {
            key,
            value: key,
            keyCache,
            valueCache: keyCache,
            slotMapping,
            ...changed,
          }),
        );
      await expect(record({ value: { ...key, shape: [1, 8] } })).rejects.toThrow("value must have at least 2 rows");
      await expect(record({ valueCache: { ...keyCache, numSlots: 1 } })).rejects.toThrow(
        "valueCache.numSlots must be that of keyCache, 2, got 1",
      );
    });
  });

  /** Pages of sequences, drawn from a pool without order; one list after the other. */
  function pageLists(lengths: readonly number[], pageSize: number, numPages: number, seed: number) {
    const order = Array.from({ length: numPages }, (_, page) => (page * 7919 + seed) % numPages);
    const kvIndptr = [0];
    for (const length of lengths) kvIndptr.push((kvIndptr.at(-1) ?? 0) + Math.ceil(length / pageSize));
    return { kvIndptr, kvIndices: order.slice(0, kvIndptr.at(-1)) };
  }

  /** Appends, in the steps given, to the cache on the device and by the page tables on the host; compares every byte. */
  async function appendInSteps(
    shape: PoolShape,
    lengths: readonly number[],
    steps: readonly (readonly number[])[],
    seed: number,
  ): Promise<void> {
    const { storage, numHeads, channels, pageSize, numPages } = shape;
    const pool = makePool(shape);
    const { kvIndices, kvIndptr } = pageLists(lengths, pageSize, numPages, seed);
    const memory = randomBytes(pool.numBytes, seed);
    const device = test.bytes([pool.numBytes], "u8", memory);
    const stored = lengths.map((length, s) => length - steps.reduce((sum, step) => sum + step[s], 0));
    for (const [i, step] of steps.entries()) {
      const appendIndptr = [0];
      for (const n of step) appendIndptr.push((appendIndptr.at(-1) ?? 0) + n);
      const numTokens = appendIndptr.at(-1) ?? 0;
      const seqLens = stored.map((length, s) => length + step[s]);
      const places = getBatchIndicesPositions(appendIndptr, seqLens, numTokens + 2);
      const slots = slotMappingOf(places, kvIndices, kvIndptr, pageSize);
      const length = numHeads * channels;
      const [keys, values] = [1, 2].map((part) => normals((numTokens + 2) * length, 10 * i + part));
      await test.run((recorder) =>
        recordAppendKv(
          recorder,
          { numKvHeads: numHeads, headDim: channels, storage },
          {
            k: test.f32([numTokens + 2, length], keys),
            v: test.f32([numTokens + 2, length], values),
            kPages: movedTo(device.pointer, pool.k),
            vPages: movedTo(device.pointer, pool.v),
            slotMapping: test.i32([slots.length], slots),
          },
        ),
      );
      // Sequence by sequence and token by token, as the tables say; padding rows have no slot.
      const written: number[] = [];
      for (const [s, count] of step.entries()) {
        for (let j = 0; j < count; j++) {
          const position = stored[s]++;
          const page = kvIndices[kvIndptr[s] + Math.floor(position / pageSize)];
          written.push(page * pageSize + (position % pageSize));
        }
      }
      const rows = { storage, numHeads, channels };
      appendRows(memory, { ...rows, values: keys.subarray(0, numTokens * length) }, written, pool.k);
      appendRows(memory, { ...rows, values: values.subarray(0, numTokens * length) }, written, pool.v);
    }
    expect(stored).toEqual([...lengths]);
    expect(difference(test.readBytes(device), memory)).toBeUndefined();
  }

  describe("a paged append", () => {
    it.each(
      [[45], [4096], [45, 8, 25], [45, 8, 25, 22], [45, 8, 25, 22, 400], [45, 8, 25, 22, 400, 1]].flatMap((lengths) =>
        [1, 16, 64].map((pageSize) => ({ lengths, pageSize })),
      ),
    )("has FlashInfer's sequences of $lengths in pages of $pageSize", async ({ lengths, pageSize }) => {
      const numPages = lengths.reduce((sum, length) => sum + Math.ceil(length / pageSize), 3);
      const shape = { storage: "f16", layout: "slots first", numPages, pageSize, numHeads: 1, channels: 8 } as const;
      await appendInSteps(shape, lengths, [lengths], 1);
    });

    it("leaves every other bit alone, whatever is appended to whatever pages", async () => {
      const step = fc.array(fc.nat(9), { minLength: 3, maxLength: 3 });
      await fc.assert(
        fc.asyncProperty(
          fc.constantFrom(...storages),
          fc.constantFrom(...layouts),
          fc.integer({ min: 1, max: 9 }),
          fc.integer({ min: 1, max: 3 }),
          fc.integer({ min: 1, max: 40 }),
          fc.array(step, { minLength: 1, maxLength: 4 }),
          step,
          fc.nat(1000),
          async (storage, layout, pageSize, numHeads, channels, steps, before, seed) => {
            const lengths = before.map((length, s) => steps.reduce((sum, counts) => sum + counts[s], length));
            const used = lengths.reduce((sum, length) => sum + Math.ceil(length / pageSize), 0);
            const shape = { storage, layout, pageSize, numHeads, channels, numPages: used + 3 };
            await appendInSteps(shape, lengths, steps, seed);
            test.clear();
          },
        ),
        { numRuns: 40, seed: 11 },
      );
    });
  });
});

describe("checkSlices", () => {
  const sizes = { numTokens: 10, numSlots: 16, pageSize: 4 };
  const check = (slices: readonly number[]) => () => checkSlices(slices, slices.length / 3, sizes);

  it("lets pass what keeps the rules", () => {
    expect(check([0, 4, 15, 0, 4, 9, 4, 3, 1])).not.toThrow();
  });
  it.each([
    [[0, 0, 0], "slice 0 (cache start 0, new start 0, length 0) must have a length from 1 to the page size 4"],
    [[0, 0, 5], "must have a length from 1 to the page size 4"],
    [[3, 0, 2], "must lie in one page of 4 slots"],
    [[14, 0, 3], "must lie in the 16 slots of the cache"],
    [[-1, 0, 1], "must lie in the 16 slots of the cache"],
    [[0, 8, 3], "must lie in the 10 rows of newKv"],
    [[0, 2, 0, 5, 3, 2], "slice 1 (cache start 2, new start 5, length 2) must not write slot 2: slice 0 does"],
  ])("refuses %j", (slices, message) => {
    expect(check(slices)).toThrow(message);
  });
});
