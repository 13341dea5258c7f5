import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { storedTensor } from "../../test/fixtures/attention/mlaCase.ts";
import { absorbedStep, expectResult, reference } from "../../test/fixtures/compat/absorbedStep.ts";
import { bitsOf, normals, TestDevice } from "../../test/ops/testDevice.ts";
import { mlaReference } from "../attention/mla/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import { e4m3ToF32 } from "../tensor/index.ts";
import { BatchMLAPagedAttentionWrapper } from "./batchMla.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

describe("BatchMLAPagedAttentionWrapper", () => {
  const lengths = [
    [3, 13],
    [1, 0],
    [7, 40],
    [0, 5],
  ] as const;
  const planned = (step: ReturnType<typeof absorbedStep>, storage: ElementStorage, causal = true) => {
    const wrapper = new BatchMLAPagedAttentionWrapper(test.device);
    const { queryIndptr, indptr, indices, kvLens } = step.lists;
    wrapper.plan(queryIndptr, indptr, indices, kvLens, 3, 64, 8, step.made.spec.pageSize, causal, 0.1, "f32", storage);
    return wrapper;
  };

  it.each([
    [1, true],
    [16, false],
  ] as const)("attends any number of queries over pages of %i, causal %s", async (pageSize, causal) => {
    const step = absorbedStep(lengths, "bf16", pageSize, causal);
    const wrapper = planned(step, "bf16", causal);
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
    const want = reference(step);
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe), want);
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true }), want, 2);
    expectResult(
      test,
      await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true, returnLseBaseOnE: true }),
      want,
      Math.E,
    );
    wrapper.release();
  });

  it("scales 8-bit caches, each part by its own number", async () => {
    const step = absorbedStep(lengths, "f8e4m3");
    const wrapper = planned(step, "f8e4m3");
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
    const { made } = step;
    const scaled = { ...step, made: { ...made, ckv: made.ckv.map((x) => 0.5 * x), kpe: made.kpe.map((x) => 3 * x) } };
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe, { ckvScale: 0.5, kpeScale: 3 }), reference(scaled));
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
    expectResult(test, result, mlaReference(spec, batch, { qLatent: q, ckvCache: decoded }));
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
    expectResult(test, result, mlaReference(spec, batch, { qLatent: q, qPe, ckvCache: ckv, kpeCache: kpe }));
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
    const [first, second] = [absorbedStep(lengths, "f32"), absorbedStep([[2, 9]], "f32")];
    const wrapper = planned(first, "f32");
    const run = async (step: ReturnType<typeof absorbedStep>) => {
      const { qNope, qPe, ckv, kpe } = step.tensors(test);
      const result = await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true });
      const bits = bitsOf(test.device.f32At(result.out.pointer, step.qLatent.length));
      expectResult(test, result, reference(step), 2);
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
    const step = absorbedStep([[1, 13]], "f32");
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
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
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
