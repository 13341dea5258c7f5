import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Arguments, hd64, makeStep, shapeOf, taken, v3 } from "../../test/fixtures/compat/raggedV3.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import type { RaggedPagedAttentionV3Options } from "./raggedPagedAttentionV3.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

describe("ragged paged attention, version 3, refuses", () => {
  const good = () =>
    makeStep(test, shapeOf([4, 2], 16, { pageSize: 4 }), [
      { queryLen: 1, kvLen: 3 },
      { queryLen: 4, kvLen: 9 },
    ]).upload();
  const fails = async (
    changes: (args: Arguments) => Partial<Record<keyof Arguments, unknown>>,
    message: string,
    options: RaggedPagedAttentionV3Options = {},
  ) => {
    const args = good();
    const { usedBytes } = test.device.stats();
    const before = test.readBytes(args.kvCache);
    await expect(v3(test, { ...args, ...(changes(args) as Partial<Arguments>) }, options)).rejects.toThrow(message);
    expect(Buffer.compare(test.readBytes(args.kvCache), before)).toBe(0);
    expect(test.device.stats().usedBytes).toBe(usedBytes);
  };
  const no = () => ({});
  // Kernels and scratch stay: with them made, a call that fails must leave no memory taken.
  beforeAll(async () => {
    taken(test, (await v3(test, good())).out);
    test.clear();
  });

  it("masks that contradict each other", async () => {
    await fails(no, "skipKvMask = true must not be used with useCausalMask = true", { skipKvMask: true });
    await fails(no, "slidingWindow = 4 must be used with useCausalMask = true", {
      slidingWindow: 4,
      useCausalMask: false,
    });
    await fails(no, "maskValue = -100 must be at most -65504", { maskValue: -100 });
  });

  it("tensors that do not fit together", async () => {
    const reshaped =
      (name: "queries" | "keys" | "values" | "kvCache", shape: readonly number[]) => (args: Arguments) => ({
        [name]: { ...args[name], shape },
      });
    await fails(reshaped("queries", [9, 64]), "queries.shape = [9, 64] must be [maxTokens, numQHeads, headDim]");
    await fails(reshaped("keys", [9, 2]), "keys.shape = [9, 2] must be [maxTokens, numKvHeads, headDim]");
    await fails(reshaped("values", [9, 2]), "values.shape = [9, 2] must be [maxTokens, numKvHeads, headDim]");
    await fails(reshaped("values", [9, 1, 16]), "values.shape = [9, 1, 16] must be keys.shape = [9, 2, 16]");
    await fails(reshaped("queries", [8, 4, 16]), "keys.shape[0] = 9 must be queries.shape[0] = 8");
    await fails(reshaped("queries", [9, 4, 8]), "keys.shape[2] = 16 must be queries.shape[2] = 8");
    await fails(reshaped("queries", [9, 3, 16]), "numQHeads = 3 must be divisible by numKvHeads = 2");
    await fails(
      reshaped("kvCache", [7, 4, 4, 128]),
      "kvCache.shape = [7, 4, 4, 128] must be [pages, pageSize, rows / pack, pack, channels]",
    );
    await fails(reshaped("kvCache", [7, 4, 4, 1, 64]), "kvCache.shape = [7, 4, 4, 1, 64] must be [7, 4, 4, 1, 128]");
    await fails(reshaped("kvCache", [7, 4, 1, 3, 128]), "kvCache.shape = [7, 4, 1, 3, 128] must be [7, 4, 2, 3, 128]");
    await fails(reshaped("kvCache", [7, 4, 2, 0, 128]), "pack = 0 of kvCache.shape[3] must be at least 1");
    await fails(reshaped("kvCache", [7, 3, 2, 2, 128]), "pageSize = 3 must be divisible by pack = 2");
    await fails(
      ({ kvCache }) => ({ kvCache: { ...kvCache, type: "i8" } }),
      "kvCache.type = i8 must be a floating-point type",
    );
    await fails(({ keys }) => ({ keys: { ...keys, type: "f16" } }), "keys.type = f16 must be f32");
    const out = test.f32([1, 4, 16], new Float32Array(64));
    await fails(no, "out must have shape [at least 9, 4, 16], got [1, 4, 16]", { out });
    await fails(no, "out must be a dense f16 [9, 4, 16], got f32 [1, 4, 16]", { out, outDtype: "f16" });
  });

  it("integer arrays of another type or length", async () => {
    await fails(() => ({ kvLens: [3, 9] }), "kvLens must be an Int32Array, got Array");
    await fails(() => ({ pageIndices: new Uint32Array(16) }), "pageIndices must be an Int32Array, got Uint32Array");
    await fails(() => ({ cuQLens: new Float32Array(5) }), "cuQLens must be an Int32Array, got Float32Array");
    await fails(() => ({ distribution: [1, 2, 2] }), "distribution must be an Int32Array, got Array");
    await fails(
      () => ({ pageIndices: new Int32Array(17) }),
      "pageIndices.length = 17 must be divisible by maxSeqs = 4",
    );
    await fails(() => ({ cuQLens: new Int32Array(4) }), "cuQLens.length = 4 must be 5");
    await fails(() => ({ distribution: new Int32Array(2) }), "distribution.length = 2 must be 3");
  });

  it("numbers that mean nothing", async () => {
    for (const name of ["slidingWindow", "chunkPrefillSize", "vmemLimitBytes", "qScale", "kScale", "vScale"]) {
      await fails(no, `${name} = 0 must be positive`, { [name]: 0 });
    }
    await fails(no, "softCap = 0 must not be 0", { softCap: 0 });
    await fails(no, "dBlockSizes: bq = 3 must be divisible by a positive bqCompute, got 2", {
      dBlockSizes: [3, 8, 2, 8],
    });
    await fails(no, "pBlockSizes: bkv = 8 must be divisible by a positive bkvCompute, got 0", {
      pBlockSizes: [2, 8, 2, 0],
    });
    await fails(no, "mBlockSizes: bkv = 6 must be divisible by pageSize = 4", { mBlockSizes: [2, 6, 2, 3] });
    await fails(no, "mBlockSizes: bkvCompute = 2 must be divisible by pageSize = 4", { mBlockSizes: [2, 8, 2, 2] });
  });

  it("lengths and pages that do not fit together, of the sequences that there are", async () => {
    for (const distribution of [
      [2, 1, 2],
      [0, 2, 1],
      [-1, 0, 1],
      [0, 0, 5],
    ]) {
      await fails(
        () => ({ distribution: Int32Array.from(distribution) }),
        `distribution = [${distribution.join(", ")}] must rise from at least 0 to at most maxSeqs = 4`,
      );
    }
    const lens = (name: "kvLens" | "cuQLens", values: readonly number[]) => (args: Arguments) => {
      const changed = args[name].slice();
      changed.set(values);
      return { [name]: changed };
    };
    await fails(lens("cuQLens", [0, 1, 10]), "cuQLens[numSeqs] = 10 must be at most maxTokens = 9");
    await fails(lens("kvLens", [3, 2]), "qLen = 4 must be from 1 to kvLens[1] = 2 at sequence 1");
    await fails(lens("cuQLens", [0, 0, 5]), "qLen = 0 must be from 1 to kvLens[0] = 3 at sequence 0");
    await fails(lens("kvLens", [3, 17]), "pagesPerSeq = 4 must be at least 5 for kvLens[1] = 17 and pageSize = 4");
    await fails(
      ({ pageIndices }) => ({ pageIndices: pageIndices.map((page, i) => (i === 4 ? -1 : page)) }),
      "blockTables[1][0] = -1 is not a page: the pool has 7",
    );
  });

  it("heads of another size than 64 where rows are shared", async () => {
    const args = makeStep(test, shapeOf([4, 2], 16, { slot: [2, 1, 128], headStride: 128, valueOffset: 64 }), [
      { queryLen: 1, kvLen: 3 },
    ]).upload();
    await expect(hd64(test, args)).rejects.toThrow("headDim = 16 of queries must be 64");
    await expect(hd64(test, { ...args, kvCache: { ...args.kvCache, shape: [4, 16, 4, 1, 128] } })).rejects.toThrow(
      "kvCache.shape = [4, 16, 4, 1, 128] must be [4, 16, 2, 1, 128]",
    );
  });
});
