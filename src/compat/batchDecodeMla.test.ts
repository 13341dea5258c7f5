import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { absorbedStep, expectResult, reference, tolerance } from "../../test/fixtures/compat/absorbedStep.ts";
import { TestDevice, worstError } from "../../test/ops/testDevice.ts";
import { BatchDecodeMlaWithPagedKVCacheWrapper } from "./batchDecodeMla.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

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
    const step = absorbedStep(lengths, "f16");
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device);
    wrapper.plan(step.lists.indptr, step.lists.indices, lastPageLen, 3, 64, 4, 0.1);
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe), reference(step, { rope }));
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe, { returnLse: true }), reference(step, { rope }), 2);
    const scaled = reference(step, { rope, smScale: 0.1 * 0.5 * 3 });
    const result = await wrapper.run(qNope, qPe, ckv, kpe, { qScale: 0.5, kScale: 3, vScale: 2, returnLse: true });
    expectResult(test, result, { ...scaled, z: scaled.z.map((value) => 2 * value) }, 2);
    wrapper.release();
  });

  it("has its own base, scale, window and cap", async () => {
    const step = absorbedStep(lengths, "f32");
    const wrapper = new BatchDecodeMlaWithPagedKVCacheWrapper(test.device);
    const plan = (options: object) =>
      wrapper.plan(step.lists.indptr, step.lists.indices, lastPageLen, 3, 64, 4, 0.1, { dataType: "f32", ...options });
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
    plan({ ropeTheta: 50, ropeScale: 4 });
    const scaling = { type: "linear", factor: 4 } as const;
    expectResult(
      test,
      await wrapper.run(qNope, qPe, ckv, kpe),
      reference(step, { rope: { ...rope, theta: 50, scaling } }),
    );
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
    const step = absorbedStep(lengths, "f32");
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
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
    expectResult(test, await wrapper.run(qNope, qPe, ckv, kpe), reference(step, { rope }));
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
    const step = absorbedStep([[1, 13]], "f32");
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
    const { qNope, qPe, ckv, kpe } = step.tensors(test);
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
