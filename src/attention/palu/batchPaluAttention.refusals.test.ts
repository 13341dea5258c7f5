import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paluCase, paluSpec } from "../../../test/fixtures/attention/palu.ts";
import { CpuDevice } from "../../devices/index.ts";
import { allocateLatentCache, BatchPaluAttention, PaluLayer, type PaluSpec } from "./index.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

describe("BatchPaluAttention names what is wrong", () => {
  const spec = paluSpec();
  const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
  const upK = new Float32Array(10 * 16);

  it("with a layer", () => {
    const make = (changes: object) => () => new PaluLayer(device, spec, { ...ranks, upK, ...changes });
    expect(make({ ranksK: [7, 4] })).toThrow("ranksK[0] = 7 must be at most the spec's maxRankK = 6");
    expect(make({ ranksV: [3, 6] })).toThrow("ranksV[1] = 6 must be at most the spec's maxRankV = 5");
    expect(make({ upK: new Float32Array(5) })).toThrow("upK must have 160 elements, got 5");
    expect(make({ ranksK: [6, 4, 3] })).toThrow("ranksV must have an entry for each of the 3 groups");
    expect(make({ keyBias: new Float32Array(32) })).toThrow("keyBias must be given exactly if the spec has keyBias");
    expect(make({ upV: new Float32Array(1) })).toThrow("upV must have 128 elements, got 1");
  });

  it("with tensors", async () => {
    const given = paluCase(
      spec,
      ranks,
      [33, 1, 97, 60].map((kvLen) => ({ queryLen: 1, kvLen })),
    );
    const layer = new PaluLayer(device, spec, { ...ranks, upK });
    const cache = allocateLatentCache(device, layer.layout, {
      storage: "f32",
      pageSize: 4,
      numPages: given.batch.numPages,
    });
    const memory = device.allocate(1 << 16, "test");
    const tensor = (...shape: number[]) => ({ pointer: memory.pointer, shape, type: "f32" as const });
    const attention = new BatchPaluAttention(device, spec);
    attention.plan(given.batch);
    const args = { layer, cache, q: tensor(4, 4, 16), ropeTable: tensor(100, 16) };
    const run = (changes: object) => attention.run({ ...args, ...changes });
    await expect(run({ q: tensor(4, 4, 6) })).rejects.toThrow("q must have shape [at least 4, 4, 16], got [4, 4, 6]");
    await expect(run({ out: tensor(4, 15) })).rejects.toThrow("out must have shape [at least 4, 16], got [4, 15]");
    await expect(run({ out: { ...tensor(4, 16), rowStride: 9 } })).rejects.toThrow(
      "out.rowStride must be an integer of at least 16",
    );
    await expect(run({ ropeTable: undefined })).rejects.toThrow("ropeTable must be given");
    await expect(run({ ropeTable: tensor(96, 16) })).rejects.toThrow("ropeTable must have shape [at least 97, 16]");
    await expect(run({ alibiSlopes: tensor(4) })).rejects.toThrow("alibiSlopes must be absent");
    await expect(run({ recent: { k: tensor(1), v: tensor(1) } })).rejects.toThrow("recent must be absent");
    await expect(run({ cache: { pages: { ...cache.pages, k: tensor(99, 4, 11) } } })).rejects.toThrow(
      `pages.k must have shape [at least ${given.batch.numPages}, 4, 10], got [99, 4, 11]`,
    );
    await expect(run({ cache: { ...cache, scales: { k: tensor(1), v: tensor(1) } } })).rejects.toThrow(
      "scales must be absent",
    );
    // A result of an earlier call that is given again stays the caller's when a call fails.
    const earlier = { ...tensor(4, 16), buffer: memory };
    await expect(run({ out: earlier, sinks: tensor(4) })).rejects.toThrow("sinks must be absent");
    const again = await run({ out: earlier, lse: { ...tensor(4, 4), pointer: memory.pointer + 4096 } });
    expect([again.out.buffer, again.lse?.buffer]).toEqual([undefined, undefined]);
    const other = new PaluLayer(device, paluSpec({ storage: "f16" }), { ...ranks, upK });
    await expect(run({ layer: other })).rejects.toThrow('layer was made for storage = "f16", the spec has "f32"');
    expect(() => new BatchPaluAttention(device, { ...spec, mla: { ropeDim: 4 } } as PaluSpec)).toThrow(
      "mla is not for Palu's attention",
    );
    other.release();
    layer.release();
    cache.release();
    attention.release();
    device.free(memory);
  });
});
