/**
 * Caches at the edge of what a device addresses: 8-bit pages, latents and scales whose elements lie more than 2^31 after the first one, tensors
 * that would reach past the end of memory, and memory that is not there.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultSpec, largestError, onReference, raggedCase } from "../../test/fixtures/attention/ragged.ts";
import { CpuDevice } from "../devices/index.ts";
import {
  CpuAttentionPlan,
  encodeRows,
  latentLayout,
  type PageStorage,
  recordAttention,
  valueDim,
} from "../ops/attention/index.ts";
import { CapacityError } from "../tensor/index.ts";
import { BatchAttention } from "./batchAttention.ts";
import { allocateLatentCache } from "./palu/index.ts";
import { allocateResult } from "./results.ts";

/** Elements between the pool's first page and the ones that are used, whatever a page holds. */
const FAR = 2 ** 31 + 4096;

describe("pages whose elements begin past 2^31", () => {
  let device: CpuDevice;
  let pool: number;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 2 });
    pool = device.allocate(FAR + (1 << 22), "pages").pointer;
  });
  afterAll(() => device.close());

  it.each<[string, PageStorage, object]>([
    ["8-bit floats", "f8e4m3", {}],
    ["codes of a group", { kind: "grouped", bits: 4, groupSize: 16 }, {}],
    ["int8", "i8", {}],
    ["8-bit latents of MLA", "f8e4m3", { numKvHeads: 1, headDim: 40, headDimV: 32, mla: { ropeDim: 8 } }],
  ])("of %s, and their scales as far out", async (_what, storage, changes) => {
    const spec = defaultSpec({ storage, ...changes });
    // As a pool of two pages, the second one far away: strides need not be those of a page.
    const given = raggedCase(spec, [{ queryLen: 2, kvLen: 3 }]);
    const [used] = given.batch.blockTables;
    const channels = spec.mla ? { k: valueDim(spec), v: spec.mla.ropeDim } : { k: spec.headDim, v: spec.headDim };
    const put = (values: Float32Array, width: number, at: number) => {
      const slots = 4 * spec.numKvHeads;
      const page = values.slice(used * slots * width, (used + 1) * slots * width);
      const { units, scales } = encodeRows(storage, page, width);
      const bytes = new Uint8Array(units.buffer, units.byteOffset, units.byteLength);
      device.u8At(pool + FAR + at, bytes.length).set(bytes);
      const row = units.length / slots;
      const scaleRow = scales.length / slots;
      device.f32At(pool + FAR + at + (1 << 19), scales.length).set(scales);
      return {
        pages: pool + at,
        strides: { page: FAR, slot: row * spec.numKvHeads, head: row },
        scales: pool + at + (1 << 19),
        scaleStrides: { page: FAR / 4, slot: scaleRow * spec.numKvHeads, head: scaleRow },
      };
    };
    const [k, v] = [put(given.kPages, channels.k, 0), put(given.vPages, channels.v, 1 << 20)];
    const upload = (values: Float32Array): number => {
      const buffer = device.allocate(values.byteLength, "test");
      device.f32(buffer).set(values);
      return buffer.pointer;
    };
    const outLength = 2 * spec.numQHeads * valueDim(spec);
    const [q, out, lse] = [given.q, new Float32Array(outLength), new Float32Array(8)].map(upload);
    const plan = new CpuAttentionPlan(device, spec);
    plan.update({ ...given.batch, blockTables: Int32Array.of(1), maxPages: 1, numPages: 2 });
    const commands = device.commands();
    recordAttention({ device, commands }, plan, {
      ...{ q, out, lse, kPages: k.pages, kStrides: k.strides, kScales: k.scales, kScaleStrides: k.scaleStrides },
      ...{ vPages: v.pages, vStrides: v.strides, vScales: v.scales, vScaleStrides: v.scaleStrides },
    });
    await device.run(commands);
    const want = onReference(given);
    expect(largestError(device.f32At(out, outLength).slice(), want.out)).toBeLessThan(3e-6);
    expect(largestError(device.f32At(lse, 8).slice(), want.lse)).toBeLessThan(3e-6);
    plan.release();
  });
});

describe("what does not fit into memory", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 1 });
  });
  afterAll(() => device.close());

  it("is refused when it is allocated, by its name and size, and leaves nothing behind", () => {
    const { usedBytes } = device.stats();
    const [llama, spec] = [
      { ranksK: [1024], ranksV: [1024] },
      { numQHeads: 8, numKvHeads: 8, headDim: 128 },
    ];
    const layout = latentLayout(llama, { ...spec, storage: "f16" });
    // Keys would fit, keys and values do not: the keys are given back.
    const numPages = Math.floor((0.7 * device.stats().maxMemoryBytes) / (16 * 1024 * 2));
    // Once each: memory that was given out before is cleared when it is given out again.
    const refusals = [
      () => allocateLatentCache(device, layout, { storage: "f16", numPages, pageSize: 16 }),
      () => allocateResult(device, "out", [2 ** 20, 32, 128]),
    ].map((allocate) => {
      try {
        allocate();
      } catch (error) {
        return error;
      }
      return undefined;
    });
    expect(refusals.every((error) => error instanceof CapacityError)).toBe(true);
    expect(refusals.map(String)).toEqual([
      expect.stringContaining('("latent cache"): 2867.2 MiB of 4095.9 MiB are in use'),
      expect.stringContaining('no room for 16384.0 MiB ("out")'),
    ]);
    expect(device.stats().usedBytes).toBe(usedBytes);
  });

  it.each([
    [{ shape: [2 ** 22, 4, 2, 128] }, 2 ** 34],
    [{ shape: [3, 4, 2, 128], strides: [2 ** 30, 256, 128, 1] }, 2 ** 33 + 4096],
    [{ shape: [3, 4, 2, 128], pointer: 2 ** 32 - 4096 }, 2 ** 32 + 2 * 4096],
  ])("is refused as a tensor that reaches past all addresses: %o", async (changes, end) => {
    const buffer = device.allocate(4096, "q");
    const q = { pointer: buffer.pointer, shape: [1, 4, 128], type: "f32" } as const;
    const pages = { pointer: 0, type: "f32", ...changes } as const;
    const attention = new BatchAttention(device, defaultSpec({ headDim: 128 }));
    const { batch } = raggedCase(defaultSpec(), [{ queryLen: 1, kvLen: 5 }]);
    attention.plan({ ...batch, numPages: 3, blockTables: Int32Array.of(2, 1, 0), maxPages: 3 });
    const k = { ...q, shape: [3, 4, 2, 128] };
    await expect(attention.run({ q, cache: { k, v: pages } })).rejects.toThrow(
      `cache.v must end within 2^32 bytes, which a device addresses, but reaches to ${end}`,
    );
    attention.release();
    device.free(buffer);
  });
});
