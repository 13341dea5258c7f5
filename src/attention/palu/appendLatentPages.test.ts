/** That appends and attention agree on what is described here is run in docs/attention.md, with and without scales. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { CpuDevice } from "../../devices/index.ts";
import { allocateLatentCache, appendLatentPages, PaluLayer } from "./index.ts";

describe("appendLatentPages", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 1 });
  });
  afterAll(() => device.close());

  const spec = {
    ...{ numQHeads: 4, numKvHeads: 2, headDim: 16, maxRankK: 12, maxRankV: 8 },
    storage: { kind: "grouped", bits: 4, groupSize: 8 },
    valueStorage: "f16",
  } as const;

  it("says where the rows of a layer's cache and their scales lie", () => {
    const ranks = { ranksK: [12, 4], ranksV: [8, 5] };
    const layer = new PaluLayer(device, spec, { ...ranks, upK: new Float32Array(16 * 16) });
    const cache = allocateLatentCache(device, layer.layout, { ...spec, numPages: 3, pageSize: 2 });
    const { pages, scales } = cache;
    // Rows of 8 + 4 bytes with 4 + 2 scales; of 13 numbers.
    const common = { numSlots: 6, pageSize: 2 };
    expect(appendLatentPages(layer, cache)).toEqual({
      layout: layer.layout,
      table: layer.table,
      kPages: {
        ...{ ...common, type: spec.storage, pointer: pages.k.pointer, pageStride: 24, slotStride: 12 },
        scales: { pointer: scales?.k.pointer, pageStride: 12, slotStride: 6 },
      },
      vPages: { ...common, type: "f16", pointer: pages.v.pointer, pageStride: 26, slotStride: 13 },
    });
    const rows = (tensor: { readonly pointer: number; readonly shape: readonly number[]; readonly type: "f32" }) => ({
      ...tensor,
      shape: [6, ...tensor.shape.slice(2)],
    });
    const plain = new PaluLayer(
      device,
      { ...spec, storage: "f32", valueStorage: "f32" },
      { ...ranks, upK: new Float32Array(16 * 16) },
    );
    const k = { pointer: 64, shape: [3, 2, 16], type: "f32" } as const;
    const v = { pointer: 640, shape: [3, 2, 13], type: "f32" } as const;
    const contiguous = appendLatentPages(plain, { pages: { k: rows(k), v: rows(v) } });
    expect(contiguous.kPages).toEqual({ numSlots: 6, type: "f32", pointer: 64, pageStride: 16, slotStride: 16 });
    expect(() => appendLatentPages(plain, { pages: { k: v, v } })).toThrow(
      "pages.k must have shape [at least 3, 2, 16]",
    );
    for (const each of [layer, plain, cache]) each.release();
  });
});
