import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type MlaCase, type MlaCaseOptions, makeMlaCase, storedTensor } from "../../test/fixtures/attention/mlaCase.ts";
import { bitsOf, normals, TestDevice, worstError } from "../../test/ops/testDevice.ts";
import type { AttentionResult } from "../attention/index.ts";
import { type MlaReferenceOutputs, mlaReference } from "../attention/mla/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import type { RopeSpec } from "../ops/rope/index.ts";
import { e4m3ToF32 } from "../tensor/index.ts";
import { BatchDecodeMlaWithPagedKVCacheWrapper } from "./batchDecodeMla.ts";
import { BatchMLAPagedAttentionWrapper } from "./batchMla.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };
const dims = { numHeads: 3, kvLoraRank: 64, qkRopeHeadDim: 8, qkNopeHeadDim: 64, vHeadDim: 1 };

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

/** A case of absorbed queries, and its pages as one list. */
function make(lengths: MlaCaseOptions["lengths"], storage: ElementStorage, pageSize = 4, causal = true) {
  const made = makeMlaCase({ ...dims, pageSize, lengths, storage, causal, smScale: 0.1 });
  const { maxPages, blockTables, kvLens, numSeqs, numPages } = made.batch;
  const held = Array.from({ length: numSeqs }, (_, s) => Math.ceil(kvLens[s] / pageSize));
  const indptr = Int32Array.from([0, ...held.map((_, s) => held.slice(0, s + 1).reduce((a, b) => a + b))]);
  const indices = Int32Array.from(
    held.flatMap((pages, s) => [...blockTables.subarray(s * maxPages, s * maxPages + pages)]),
  );
  const qLatent = normals(made.batch.numRows * dims.numHeads * dims.kvLoraRank, 9).map((value) => value / 2);
  const shape = (width: number) => [numPages, pageSize, width];
  return {
    made,
    qLatent,
    lists: {
      indptr,
      indices,
      kvLens: kvLens.slice(0, numSeqs),
      queryIndptr: made.batch.queryIndptr.slice(0, numSeqs + 1),
    },
    tensors: () => ({
      qNope: test.f32([made.batch.numRows, dims.numHeads, dims.kvLoraRank], qLatent),
      qPe: test.f32([made.batch.numRows, dims.numHeads, dims.qkRopeHeadDim], made.qPe),
      ckv: storedTensor(test, storage, shape(dims.kvLoraRank), made.ckv),
      kpe: storedTensor(test, storage, shape(dims.qkRopeHeadDim), made.kpe),
    }),
  };
}

function reference(
  { made, qLatent }: { made: MlaCase; qLatent: Float32Array },
  changes: { rope?: RopeSpec; smScale?: number } = {},
) {
  const inputs = { qLatent, qPe: made.qPe, ckvCache: made.ckv, kpeCache: made.kpe };
  return mlaReference({ ...made.spec, ...changes }, made.batch, inputs);
}

/** Compares and frees. `base`: of the LSE. */
function expectResult({ out, lse }: AttentionResult, want: MlaReferenceOutputs, base?: number): void {
  const got = test.device.f32At(out.pointer, want.z.length);
  expect(worstError(got, want.z, tolerance)).toBeLessThan(1);
  expect(lse !== undefined).toBe(base !== undefined);
  if (lse && base) {
    const logarithms = test.device.f32At(lse.pointer, want.lse.length);
    for (const [i, value] of want.lse.entries()) {
      if (value === -Infinity) expect(logarithms[i]).toBe(-Infinity);
      else expect(Math.abs(logarithms[i] - value / Math.log(base))).toBeLessThan(2e-5);
    }
  }
  for (const tensor of [out, lse]) if (tensor?.buffer) test.device.free(tensor.buffer);
}

describe("BatchDecodeMlaWithPagedKVCacheWrapper", () => {
  const lengths = [
    [1, 13],
    [1, 0],
    [1, 40],
    [1, 4],
  ] as const;
  const lastPageLen = Int32Array.of(1, 0, 4, 4);
  const rope = { headDim: 8, rotaryDim: 8, style: "interleaved", theta: 1e4, scaling: { type: "default" } } as const;

  it("rotates an unrotated f16 cache by default, with the LSE to base 2", async () => {
    const step = make(lengths, "f16");
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device);
    wrapper.plan(step.lists.indptr, step.lists.indices, lastPageLen, 3, 64, 4, 0.1);
    const { qNope, qPe, ckv, kpe } = step.tensors();
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe), reference(step, { rope }));
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true }), reference(step, { rope }), 2);
    const scaled = reference(step, { rope, smScale: 0.1 * 0.5 * 3 });
    const result = await wrapper.run(qNope, qPe, ckv, kpe, { qScale: 0.5, kScale: 3, vScale: 2, returnLse: true });
    expectResult(result, { ...scaled, z: scaled.z.map((value) => 2 * value) }, 2);
    wrapper.release();
  });

  it("has its own base, scale, window and cap", async () => {
    const step = make(lengths, "f32");
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device);
    const plan = (options: object) =>
      wrapper.plan(step.lists.indptr, step.lists.indices, lastPageLen, 3, 64, 4, 0.1, { dataType: "f32", ...options });
    const { qNope, qPe, ckv, kpe } = step.tensors();
    plan({ ropeTheta: 50, ropeScale: 4 });
    const scaling = { type: "linear", factor: 4 } as const;
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe), reference(step, { rope: { ...rope, theta: 50, scaling } }));
    // What the original ignored: one key in the window leaves that key's latent.
    plan({ windowLeft: 0 });
    const own = await wrapper.run(qNope, qPe, ckv, kpe);
    const last = step.made.slotsOf(2)[39];
    const latent = step.made.ckv.subarray(last * 64, last * 64 + 64);
    expect(worstError(test.device.f32At(own.out.pointer + 2 * 3 * 64 * 4, 64), latent, tolerance)).toBeLessThan(1);
    plan({ logitsSoftCap: 1e-6 });
    const even = await wrapper.run(qNope, qPe, ckv, kpe);
    const mean = Float64Array.from({ length: 64 }, (_, d) =>
      step.made.slotsOf(3).reduce((sum, slot) => sum + step.made.ckv[slot * 64 + d] / 4, 0),
    );
    expect(
      worstError(test.device.f32At(even.out.pointer + 3 * 3 * 64 * 4, 64), mean, { relative: 1e-4, absolute: 1e-4 }),
    ).toBeLessThan(1);
    for (const { out } of [own, even]) if (out.buffer) test.device.free(out.buffer);
    wrapper.release();
  });

  it("takes every plan to its buffers where graphs are captured", async () => {
    const step = make(lengths, "f32");
    const buffers = {
      pagedKvIndptrBuffer: new Int32Array(5),
      pagedKvIndicesBuffer: new Int32Array(20).fill(-1),
      pagedKvLastPageLenBuffer: new Int32Array(4),
    };
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device, { useCudaGraph: true, ...buffers });
    const { indptr, indices } = step.lists;
    const plan = (a: Int32Array, b: Int32Array, c: Int32Array) =>
      wrapper.plan(a, b, c, 3, 64, 4, 0.1, { dataType: "f32" });
    plan(indptr, indices, lastPageLen);
    expect([...buffers.pagedKvIndicesBuffer.subarray(0, indices.length)]).toEqual([...indices]);
    const { qNope, qPe, ckv, kpe } = step.tensors();
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe), reference(step, { rope }));
    expect(() => plan(indptr.slice(0, 4), indices, lastPageLen.slice(0, 3))).toThrow(
      "indptr.length = 4 must be the buffer's, as the batch size is fixed: 5",
    );
    expect(() => plan(indptr, new Int32Array(21), lastPageLen)).toThrow(
      "indices.length = 21 must be at most the buffer's 20",
    );
    wrapper.release();
    const create = (changes: object) => () =>
      new BatchDecodeMlaWithPagedKVCacheWrapper(test.device, { useCudaGraph: true, ...buffers, ...changes });
    expect(create({ pagedKvIndicesBuffer: undefined })).toThrow(
      "pagedKvIndicesBuffer must be an Int32Array with useCudaGraph",
    );
    expect(create({ pagedKvIndptrBuffer: new Int32Array(4) })).toThrow(
      "pagedKvIndptrBuffer.length = 4 must be the batch size and 1, 5",
    );
  });

  it("names what is wrong", async () => {
    const step = make([[1, 13]], "f32");
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device);
    const { indptr, indices } = step.lists;
    const plan =
      (changes: { indptr?: Int32Array; last?: Int32Array; ckv?: number; smScale?: number }, options: object = {}) =>
      () =>
        wrapper.plan(
          changes.indptr ?? indptr,
          indices,
          changes.last ?? Int32Array.of(1),
          3,
          changes.ckv ?? 64,
          4,
          changes.smScale ?? 0.1,
          { dataType: "f32", ...options },
        );
    const { qNope, qPe, ckv, kpe } = step.tensors();
    await expect(wrapper.run(qNope, qPe, ckv, kpe)).rejects.toThrow("plan must be called before run");
    // A full page has pageSize tokens, not 0.
    expect(plan({ last: Int32Array.of(0) })).toThrow("lastPageLen[0] = 0 must be from 1 to pageSize = 4");
    expect(plan({ last: Int32Array.of(5) })).toThrow("lastPageLen[0] = 5 must be from 1 to pageSize = 4");
    expect(plan({ indptr: Int32Array.of(0, 9) })).toThrow("indptr[1] = 9 must be from 0 to indices.length = 4");
    expect(plan({ ckv: 72 })).toThrow("headDimCompressedKv = 72 must be a multiple of 16");
    expect(plan({ smScale: 0 })).toThrow("smScale = 0 must be positive");
    expect(plan({}, { dataType: "i8" })).toThrow("dataType = i8 must be one of f32, f16, bf16, f8e4m3");
    expect(plan({}, { qDataType: "bf16" })).toThrow(
      "qDataType = bf16 must be f32: queries of other types are converted before",
    );
    expect(plan({}, { logitsSoftCap: -1 })).toThrow("logitsSoftCap = -1 must be positive, or 0 for none");
    expect(plan({}, { windowLeft: -2 })).toThrow("windowLeft");
    expect(plan({}, { ropeTheta: 0 })).toThrow("ropeTheta = 0 must be positive");
    plan({})();
    await expect(wrapper.run({ ...qNope, shape: [1, 3, 63] }, qPe, ckv, kpe)).rejects.toThrow(
      "qNope.shape = [1, 3, 63] must be [1, 3, 64]",
    );
    await expect(wrapper.run(qNope, { ...qPe, type: "f16" }, ckv, kpe)).rejects.toThrow("qPe.type = f16 must be f32");
    await expect(wrapper.run(qNope, qPe, { ...ckv, type: "f16" }, kpe)).rejects.toThrow(
      "pagedCkvCache.type = f16 must be f32",
    );
    await expect(wrapper.run(qNope, qPe, ckv, { ...kpe, shape: [7, 4, 9] })).rejects.toThrow(
      "pagedKpeCache.shape = [7, 4, 9] must be [pages, 4, 8]",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { kScale: -1 })).rejects.toThrow("kScale = -1 must be positive");
    wrapper.release();
  });
});

describe("BatchMLAPagedAttentionWrapper", () => {
  const lengths = [
    [3, 13],
    [1, 0],
    [7, 40],
    [0, 5],
  ] as const;
  const planned = (step: ReturnType<typeof make>, storage: ElementStorage, causal = true) => {
    const wrapper = new BatchMLAPagedAttentionWrapper(test.device);
    const { queryIndptr, indptr, indices, kvLens } = step.lists;
    wrapper.plan(queryIndptr, indptr, indices, kvLens, 3, 64, 8, step.made.spec.pageSize, causal, 0.1, "f32", storage);
    return wrapper;
  };

  it.each([
    [1, true],
    [16, false],
  ] as const)("attends any number of queries over pages of %i, causal %s", async (pageSize, causal) => {
    const step = make(lengths, "bf16", pageSize, causal);
    const wrapper = planned(step, "bf16", causal);
    const { qNope, qPe, ckv, kpe } = step.tensors();
    const want = reference(step);
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe), want);
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true }), want, 2);
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true, returnLseBaseOnE: true }), want, Math.E);
    wrapper.release();
  });

  it("scales 8-bit caches, each part by its own number", async () => {
    const step = make(lengths, "f8e4m3");
    const wrapper = planned(step, "f8e4m3");
    const { qNope, qPe, ckv, kpe } = step.tensors();
    const { made } = step;
    const scaled = { ...step, made: { ...made, ckv: made.ckv.map((x) => 0.5 * x), kpe: made.kpe.map((x) => 3 * x) } };
    expectResult(await wrapper.run(qNope, qPe, ckv, kpe, { ckvScale: 0.5, kpeScale: 3 }), reference(scaled));
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { kpeScale: 1 })).rejects.toThrow(
      "exactly one of ckvScale and ckvScaleArr must be given",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { ckvScale: 1, ckvScaleArr: qPe, kpeScale: 1 })).rejects.toThrow(
      "exactly one of",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { ckvScale: 1 })).rejects.toThrow(
      "kpeScale must be given for kvDataType = f8e4m3",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { ckvScale: Infinity, kpeScale: 1 })).rejects.toThrow(
      "ckvScale must be a finite positive number, got Infinity",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { ckvScaleArr: qPe, kpeScale: 1 })).rejects.toThrow(
      "headDimCkv = 64 must be a multiple of 128 for ckvScaleArr",
    );
    wrapper.release();
  });

  it("takes a scale for every 128 channels of a token, and layers without rope", async () => {
    const [heads, width, numSlots] = [2, 256, 12];
    const rows = normals(numSlots * width, 4);
    const tiles = Float32Array.from({ length: numSlots * 2 }, (_, i) => 1 + (i % 5));
    const codes = storedTensor(test, "f8e4m3", [3, 4, width], rows);
    const q = normals(2 * heads * width, 5);
    const wrapper = new BatchMLAPagedAttentionWrapper(test.device, { backend: "fa2" });
    wrapper.plan(
      Int32Array.of(0, 2),
      Int32Array.of(0, 3),
      Int32Array.of(2, 0, 1),
      Int32Array.of(11),
      heads,
      width,
      0,
      4,
      true,
      0.02,
      "f32",
      "f8e4m3",
    );
    const decoded = Float32Array.from(test.readBytes(codes), (code, i) => e4m3ToF32(code) * tiles[Math.floor(i / 128)]);
    const result = await wrapper.run(test.f32([2, heads, width], q), undefined, codes, undefined, {
      ckvScaleArr: test.f32([3, 4, 2], tiles),
      kpeScale: 1,
    });
    const spec = {
      numHeads: heads,
      kvLoraRank: width,
      qkRopeHeadDim: 0,
      qkNopeHeadDim: 1,
      vHeadDim: 1,
      pageSize: 4,
      smScale: 0.02,
      causal: true,
    };
    const batch = {
      numRows: 2,
      numSeqs: 1,
      queryIndptr: Int32Array.of(0, 2),
      kvLens: Int32Array.of(11),
      blockTables: Int32Array.of(2, 0, 1),
      maxPages: 3,
      numPages: 3,
    };
    expectResult(result, mlaReference(spec, batch, { qLatent: q, ckvCache: decoded }));
    wrapper.release();
  });

  it("runs cutlass's form without a plan, within its limits", async () => {
    const q = normals(2 * 128 * 512, 1).map((x) => x / 4);
    const qPe = normals(2 * 128 * 64, 2);
    const [ckv, kpe] = [normals(128 * 512, 3), normals(128 * 64, 4)];
    const wrapper = new BatchMLAPagedAttentionWrapper(test.device, { backend: "cutlass" });
    const tensors = [
      test.f32([2, 128, 512], q),
      test.f32([2, 128, 64], qPe),
      test.f32([2, 64, 512], ckv),
      test.f32([2, 64, 64], kpe),
    ] as const;
    const [pageTable, kvLen] = [{ values: Int32Array.of(0, -1, 1, -1), shape: [2, 2] as const }, Int32Array.of(3, 2)];
    const result = await wrapper.run(...tensors, { kvLen, pageTable });
    const spec = {
      numHeads: 128,
      kvLoraRank: 512,
      qkRopeHeadDim: 64,
      qkNopeHeadDim: 1,
      vHeadDim: 1,
      pageSize: 64,
      smScale: 192 ** -0.5,
      causal: false,
    };
    const batch = {
      numRows: 2,
      numSeqs: 2,
      queryIndptr: Int32Array.of(0, 1, 2),
      kvLens: kvLen,
      blockTables: pageTable.values,
      maxPages: 2,
      numPages: 2,
    };
    expectResult(result, mlaReference(spec, batch, { qLatent: q, qPe, ckvCache: ckv, kpeCache: kpe }));
    const run = (changes: object) => wrapper.run(...tensors, { kvLen, pageTable, ...changes });
    await expect(run({ returnLse: true })).rejects.toThrow("returnLse is not supported with backend cutlass");
    await expect(run({ kvLen: undefined })).rejects.toThrow("kvLen must be given with backend cutlass");
    await expect(run({ pageTable: { values: Int32Array.of(0, 1), shape: [2, 1] } })).rejects.toThrow(
      "pageTable must have a multiple of 128 / pageSize = 2 columns, got 1",
    );
    await expect(
      wrapper.run(test.f32([1, 3, 512], q.subarray(0, 1536)), tensors[1], tensors[2], tensors[3], { kvLen, pageTable }),
    ).rejects.toThrow("qNope must have 128 heads with backend cutlass, got 3");
    const all = Int32Array.of(0, 1);
    expect(() => wrapper.plan(all, all, all, Int32Array.of(1), 128, 512, 64, 64, true, 1, "f32", "f32")).toThrow(
      "backend = cutlass runs without a plan",
    );
    wrapper.release();
  });

  it("plans again without leaving anything of the last step", async () => {
    const [first, second] = [make(lengths, "f32"), make([[2, 9]], "f32")];
    const wrapper = planned(first, "f32");
    const run = async (step: ReturnType<typeof make>) => {
      const { qNope, qPe, ckv, kpe } = step.tensors();
      const result = await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true });
      const bits = bitsOf(test.device.f32At(result.out.pointer, step.qLatent.length));
      expectResult(result, reference(step), 2);
      return bits;
    };
    const before = await run(first);
    const { queryIndptr, indptr, indices, kvLens } = second.lists;
    wrapper.plan(queryIndptr, indptr, indices, kvLens, 3, 64, 8, 4, true, 0.1, "f32", "f32");
    await run(second);
    const again = first.lists;
    wrapper.plan(again.queryIndptr, again.indptr, again.indices, again.kvLens, 3, 64, 8, 4, true, 0.1, "f32", "f32");
    expect(await run(first)).toEqual(before);
    wrapper.release();
  });

  it("names what is wrong", async () => {
    const step = make([[1, 13]], "f32");
    const wrapper = new BatchMLAPagedAttentionWrapper(test.device);
    const { queryIndptr, indptr, indices, kvLens } = step.lists;
    const plan =
      (a: { kvIndptr?: Int32Array; kvLens?: Int32Array; kpe?: number; q?: string; kv?: string; profiler?: boolean }) =>
      () =>
        // Types are stripped in plain JavaScript: these are what a caller there may write.
        wrapper.plan(
          queryIndptr,
          a.kvIndptr ?? indptr,
          indices,
          a.kvLens ?? kvLens,
          3,
          64,
          a.kpe ?? 8,
          4,
          true,
          0.1,
          (a.q ?? "f32") as "f32",
          (a.kv ?? "f32") as "f32",
          a.profiler,
        );
    expect(plan({ kvIndptr: Int32Array.of(0) })).toThrow("kvIndptr.length = 1 must be 2, one more than kvLenArr");
    expect(plan({ kvLens: Int32Array.of(17) })).toThrow("kvLens[0] = 17 needs 5 pages of 4 tokens");
    expect(plan({ kvLens: Int32Array.of(-1) })).toThrow("kvLens[0] must not be negative, got -1");
    expect(plan({ kpe: -1 })).toThrow("headDimKpe must be an integer of at least 0, got -1");
    expect(plan({ q: "f16" })).toThrow("qDataType = f16 must be f32");
    expect(plan({ kv: "f8e5m2" })).toThrow("kvDataType = f8e5m2 must be one of f32, f16, bf16, f8e4m3");
    expect(plan({ profiler: true })).toThrow("useProfiler = true is not supported");
    expect(() => new BatchMLAPagedAttentionWrapper(test.device, { backend: "trt" as "fa2" })).toThrow(
      "backend = trt must be auto, fa2, fa3 or cutlass",
    );
    const { qNope, qPe, ckv, kpe } = step.tensors();
    await expect(wrapper.run(qNope, qPe, ckv, kpe)).rejects.toThrow("plan must be called before run");
    plan({})();
    await expect(wrapper.run(qNope, undefined, ckv, kpe)).rejects.toThrow(
      "qPe must be given exactly if headDimKpe is not 0, which is 8",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { kvLen: kvLens })).rejects.toThrow(
      "kvLen must be absent: it is for backend cutlass alone",
    );
    await expect(wrapper.run(qNope, qPe, ckv, kpe, { kpeScale: 1 })).rejects.toThrow(
      "kpeScale must be absent: kvDataType = f32 has no scales",
    );
    await expect(wrapper.run(qNope, qPe, { ...ckv, type: "f16" }, kpe)).rejects.toThrow(
      "ckvCache.type = f16 must be f32",
    );
    wrapper.release();
  });
});
