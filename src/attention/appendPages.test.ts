/** Caches described once: what is appended to their tensors is what attention reads from them. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { storages } from "../../test/ops/storedPages.ts";
import { normals, TestDevice } from "../../test/ops/testDevice.ts";
import { recordAppendKv } from "../ops/appendKv/index.ts";
import { attentionReference, decodeRows, encodeRows, type PageStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { elementBytes, numElements } from "../tensor/index.ts";
import { appendPages } from "./appendPages.ts";
import { BatchAttention, type BatchAttentionSpec } from "./batchAttention.ts";
import { batchOf } from "./sequences.ts";
import { type KvTensors, type RowShape, scaleRow, storageRow } from "./tensors.ts";

const [numTokens, numKvHeads, headDim, pageSize, numPages] = [11, 2, 40, 4, 5];
const pages = [3, 0, 4];

/** Where the tensors of a cache lie, by their extents. */
const forms: Readonly<Record<string, (make: (...inner: number[]) => DeviceTensor) => KvTensors>> = {
  "NHD apart": (make) => ({ k: make(numPages, pageSize, numKvHeads), v: make(numPages, pageSize, numKvHeads) }),
  "HND apart": (make) => ({ k: make(numPages, numKvHeads, pageSize), v: make(numPages, numKvHeads, pageSize) }),
  "NHD in one": (make) => ({ kv: make(numPages, 2, pageSize, numKvHeads) }),
  "HND in one": (make) => ({ kv: make(numPages, 2, numKvHeads, pageSize) }),
  "NHD in turn": (make) => ({ combined: make(numPages, pageSize, 2 * numKvHeads) }),
  "HND in turn": (make) => ({ combined: make(numPages, 2 * numKvHeads, pageSize) }),
  "NHD rows": (make) => ({ k: make(numPages * pageSize, numKvHeads), v: make(numPages * pageSize, numKvHeads) }),
  "HND rows": (make) => ({ k: make(numKvHeads, numPages * pageSize), v: make(numKvHeads, numPages * pageSize) }),
};

describe("appendPages", () => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create({ threads: 1 });
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  /** All ones: NaN in every floating-point type. */
  const filled = ({ elements, type }: RowShape, extents: readonly number[]): DeviceTensor => {
    const shape = [...extents, elements];
    return test.bytes(shape, type, new Uint8Array(Math.max(4, numElements(shape) * elementBytes(type))).fill(0xff));
  };

  const cases = storages.flatMap((storage) => Object.keys(forms).map((form) => ({ storage, form })));
  it.each(cases)("writes $storage where attention reads it: $form", async ({ storage, form }) => {
    const isPaged = !form.endsWith("rows");
    const spec: BatchAttentionSpec = {
      ...{ headDim, numQHeads: 4, numKvHeads, storage, causal: true, smScale: headDim ** -0.5 },
      layout: form.startsWith("NHD") ? "NHD" : "HND",
      pageSize: isPaged ? pageSize : undefined,
    };
    const cache = forms[form]((...extents) => filled(storageRow(storage, headDim), extents));
    const scaled = scaleRow(storage, headDim);
    const scales = scaled.elements > 0 ? forms[form]((...extents) => filled(scaled, extents)) : undefined;
    const [k, v, q] = [1, 2, 3].map((seed) => normals(numTokens * 4 * headDim, seed));
    const rowLength = numKvHeads * headDim;
    const stored = (x: Float32Array): Float32Array =>
      decodeRows(storage, encodeRows(storage, x.subarray(0, numTokens * rowLength), headDim), headDim);

    const sequence = { queryLen: 2, kvLen: numTokens };
    const attention = new BatchAttention(test.device, spec);
    attention.plan(batchOf([isPaged ? { ...sequence, pages } : { ...sequence, firstRow: 5 }], isPaged ? numPages : 20));
    const slots = Array.from({ length: numTokens }, (_, t) =>
      isPaged ? pages[Math.floor(t / pageSize)] * pageSize + (t % pageSize) : 5 + t,
    );
    const out = test.f32([2, 4, headDim], new Float32Array(2 * 4 * headDim));
    await test.run((recorder) => {
      recordAppendKv(recorder, spec, {
        k: test.f32([numTokens, rowLength], k.subarray(0, numTokens * rowLength)),
        v: test.f32([numTokens, rowLength], v.subarray(0, numTokens * rowLength)),
        slotMapping: test.i32([numTokens], slots),
        ...appendPages(spec, cache, scales),
      });
      attention.record(recorder, { q: test.f32([2, 4, headDim], q.subarray(0, 2 * 4 * headDim)), cache, scales, out });
    });
    attention.release();
    const inputs = { q, kPages: stored(k), vPages: stored(v) };
    const want = attentionReference({ ...spec, pageSize: undefined }, batchOf([sequence], numTokens), inputs).out;
    const got = test.readF32(out);
    expect(got.every((value, i) => Math.abs(value - want[i]) < 5e-6)).toBe(true);
  });

  it("lets values be stored otherwise, with scales of their own", () => {
    const spec = { headDim, headDimV: 16, numKvHeads, pageSize, storage: "f16", valueStorage: "i8" } as const;
    const tensor = (type: DeviceTensor["type"], channels: number, pointer: number): DeviceTensor => {
      return { pointer, type, shape: [numPages, pageSize, numKvHeads, channels] };
    };
    const cache = { k: tensor("f16", headDim, 64), v: tensor("i8", 16, 8192) };
    const scales = { k: tensor("f32", 0, 0), v: tensor("f32", 1, 128) };
    const { kPages, vPages } = appendPages(spec, cache, scales);
    expect(kPages).toEqual({
      ...{ pointer: 64, type: "f16", numSlots: 20, pageSize: 4, pageStride: 320, slotStride: 80, headStride: 40 },
    });
    expect(vPages.scales).toEqual({ pointer: 128, pageStride: 8, slotStride: 2, headStride: 1 });
    expect(vPages).toMatchObject({ pointer: 8192, type: "i8", slotStride: 32 });
  });

  it("names the tensor that does not fit", () => {
    const spec = { headDim, numKvHeads, pageSize, storage: "i8" as PageStorage };
    const k: DeviceTensor = { pointer: 0, type: "i8", shape: [numPages, pageSize, numKvHeads, headDim] };
    expect(() => appendPages(spec, { k, v: k })).toThrow('scales must be given: storage "i8" has scales of rows');
    expect(() => appendPages({ ...spec, storage: "f32" }, { k, v: k })).toThrow("cache.k must be of type f32, got i8");
    const scales: DeviceTensor = { pointer: 0, type: "f32", shape: [numPages, pageSize, numKvHeads, 2] };
    expect(() => appendPages(spec, { k, v: k }, { k: scales, v: scales })).toThrow(
      "scales.k must have shape [at least",
    );
  });
});
