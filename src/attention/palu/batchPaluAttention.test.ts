import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  asHalves,
  type PaluCase,
  paluCase,
  paluOnDevice,
  paluOnReference,
  paluSpec,
  stored,
} from "../../../test/fixtures/attention/palu.ts";
import { bits, type Lengths, largestError } from "../../../test/fixtures/attention/ragged.ts";
import { normals } from "../../../test/ops/testDevice.ts";
import { CpuDevice, type DeviceBuffer } from "../../devices/index.ts";
import { attentionReference, nhdStrides, type PageStorage } from "../../ops/attention/index.ts";
import { absorbQueries, allocateLatentCache, BatchPaluAttention, PaluLayer, type PaluSpec } from "./index.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

async function expectEqualsReference(given: PaluCase, threads?: number): Promise<void> {
  const got = await paluOnDevice(device, given, threads);
  const want = paluOnReference(given);
  expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
  expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
}

const decode: readonly Lengths[] = [33, 1, 97, 60].map((kvLen) => ({ queryLen: 1, kvLen }));
const mixed: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 12, kvLen: 12 },
  { queryLen: 5, kvLen: 41 },
  { queryLen: 33, kvLen: 64 },
];

describe("attention over latents equals the reference", () => {
  // Every pair of the original kernel's build, with those that its cache layout cannot hold: ranks of 20, 10, 12, 28, 14, 30 and 15.
  it.each([
    [64, 16],
    [64, 8],
    [80, 20],
    [80, 10],
    [96, 24],
    [96, 12],
    [112, 28],
    [112, 14],
    [120, 30],
    [120, 15],
    [128, 32],
    [128, 16],
    [192, 48],
    [192, 24],
    [256, 64],
    [256, 32],
  ])("for heads of %i channels with a latent of %i each, in pages of 8, 16 and 32 tokens", async (headDim, rank) => {
    for (const pageSize of [8, 16, 32]) {
      const spec = paluSpec({ headDim, maxRankK: rank, maxRankV: rank, pageSize });
      await expectEqualsReference(paluCase(spec, { ranksK: [rank, rank], ranksV: [rank, rank] }, decode));
    }
  });

  it.each([8, 16, 32, 1, 5])("for every storage type in pages of %i tokens", async (pageSize) => {
    const storages: readonly PageStorage[] = ["f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i8"];
    for (const storage of storages) {
      const spec = paluSpec({ storage, pageSize, maxRankK: 16, maxRankV: 16 });
      await expectEqualsReference(paluCase(spec, { ranksK: [16, 15], ranksV: [14, 16] }, decode));
    }
  });

  it.each([
    ["M-LRD", [6, 3, 5, 4], [2, 5, 4, 3]],
    ["G-LRD", [6, 3], [4, 5]],
    ["J-LRD", [6], [5]],
    ["ranks above the head dimension", [40, 17], [19, 33]],
    ["rank 1", [1, 1], [1, 1]],
  ])("for groups as in %s", (_name, ranksK, ranksV) => {
    const spec = paluSpec({ numKvHeads: 4, numQHeads: 8, maxRankK: 40, maxRankV: 33 });
    return expectEqualsReference(paluCase(spec, { ranksK, ranksV }, mixed));
  });

  it.each([
    [1, 1],
    [3, 3],
    [6, 2],
    [16, 1],
    [40, 8],
  ])("for %i query heads on %i key/value heads", (numQHeads, numKvHeads) => {
    const ranks = { ranksK: [6], ranksV: [5] };
    return expectEqualsReference(paluCase(paluSpec({ numQHeads, numKvHeads }), ranks, mixed));
  });

  it.each<Partial<PaluSpec>>([
    { slidingWindow: 1 },
    { slidingWindow: 16 },
    { slidingWindow: 1000 },
    { alibi: true, rope: undefined },
    { alibi: true, slidingWindow: 9 },
    { softCap: 5 },
    { sinks: true },
    { causal: false },
    { keyBias: true },
    { keyBias: true, rope: undefined },
    { rope: { style: "interleaved", dim: 8, offset: 4 } },
    { rope: { style: "halves", dim: 16, queries: true } },
    { pageSize: undefined },
    { lseBase: "2" },
    { maskValue: -1e4 },
  ])("for prefill after a cached prefix with %o", (changes) => {
    const spec = paluSpec({ splitSize: 32, ...changes });
    return expectEqualsReference(paluCase(spec, { ranksK: [6, 4], ranksV: [3, 5] }, mixed), 100);
  });

  it.each([2, 3, 4, 8] as const)("for latents of %i bits, each group with its own scales", async (bitCount) => {
    for (const groupSize of [0, 8]) {
      const storage: PageStorage = { kind: "grouped", bits: bitCount, groupSize };
      const spec = paluSpec({ storage, valueStorage: "f16", maxRankK: 20, maxRankV: 20 });
      await expectEqualsReference(paluCase(spec, { ranksK: [20, 13], ranksV: [9, 20] }, mixed));
      const both = paluSpec({ storage, maxRankK: 20, maxRankV: 20 });
      await expectEqualsReference(paluCase(both, { ranksK: [20, 13], ranksV: [9, 20] }, mixed));
    }
  });

  it("for latents divided by a scale", () => {
    const given = paluCase(paluSpec(), { ranksK: [6, 4], ranksV: [3, 5] }, mixed);
    return expectEqualsReference({ ...given, kScale: 0.4, vScale: 1.7 });
  });

  it("for page ids in compressed rows, and rows behind the last sequence", async () => {
    const given = paluCase(paluSpec(), { ranksK: [6, 4], ranksV: [3, 5] }, mixed);
    const { batch, q } = given;
    const lists = Array.from({ length: batch.numSeqs }, (_, s) => {
      const numPages = Math.ceil(batch.kvLens[s] / 4);
      return [...batch.blockTables.subarray(s * batch.maxPages, s * batch.maxPages + numPages)];
    });
    const pageIndptr = new Int32Array(batch.numSeqs + 1);
    lists.forEach((list, s) => {
      pageIndptr[s + 1] = pageIndptr[s] + list.length;
    });
    const padded = new Float32Array(q.length + 3 * 4 * 16).fill(Number.NaN);
    padded.set(q);
    const moved = { ...batch, numRows: batch.numRows + 3, blockTables: Int32Array.from(lists.flat()), pageIndptr };
    await expectEqualsReference({ ...given, batch: moved, q: padded });
    const { out, lse } = await paluOnDevice(device, { ...given, batch: moved, q: padded });
    expect([...out.subarray(-3 * 16)].every((value) => value === 0)).toBe(true);
    expect([...lse.subarray(-3 * 4)].every((value) => value === -Infinity)).toBe(true);
  });

  it("on one thread without shared memory and relaxed SIMD", async () => {
    const plain = await CpuDevice.create({ threads: 1, sharedMemory: false, relaxedSimd: false });
    const spec = paluSpec({ storage: "f16", keyBias: true, maxRankK: 30, headDim: 40 });
    const given = paluCase(spec, { ranksK: [30, 7], ranksV: [5, 2] }, mixed);
    const [got, want] = [await paluOnDevice(plain, given), paluOnReference(given)];
    expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
    await plain.close();
  });
});

describe("recent tokens at full precision", () => {
  it.each(["f32", "f16"] as const)("in windows of %s are in one softmax with the quantised ones", async (recent) => {
    const capacity = 16;
    const storage: PageStorage = { kind: "grouped", bits: 3, groupSize: 8 };
    const spec = paluSpec({ storage, recent, maxRankK: 20, maxRankV: 20, splitSize: 32 });
    const ranks = { ranksK: [20, 13], ranksV: [9, 20] };
    // Starts inside, at both ends of, and past a page; a sequence that is all window; one that has none.
    const lengths = [70, 12, 41, 64, 16].map((kvLen) => ({ queryLen: Math.min(5, kvLen), kvLen }));
    const starts = Int32Array.of(58, 0, 30, 64, 0);
    const windows = Int32Array.of(3, 1, 4, -7, 0);
    const recentTokens = { starts, windows, capacity, numWindows: 5 };
    const given = paluCase(spec, ranks, lengths, 1, { recent: recentTokens });
    const { keyRanks, valueRanks } = given.layout;
    const fill = (row: number, seed: number): Float32Array => {
      const values = new Float32Array(5 * capacity * row).fill(Number.NaN);
      lengths.forEach(({ kvLen }, s) => {
        for (let t = starts[s]; t < kvLen; t++) {
          values.set(normals(row, seed + 100 * s + t), (windows[s] * capacity + (t % capacity)) * row);
        }
      });
      return recent === "f16" ? asHalves(values) : values;
    };
    // Pages behind a start are not read: what is there now is poison.
    const poison = (latents: Float32Array, row: number): Float32Array => {
      const poisoned = latents.slice();
      lengths.forEach(({ kvLen }, s) => {
        for (let t = starts[s]; t < kvLen; t++) {
          const page = given.batch.blockTables[s * given.batch.maxPages + Math.floor(t / 4)];
          poisoned.fill(Number.NaN, (page * 4 + (t % 4)) * row, (page * 4 + (t % 4) + 1) * row);
        }
      });
      return poisoned;
    };
    await expectEqualsReference(
      {
        ...given,
        recentK: fill(keyRanks, 1),
        recentV: fill(valueRanks, 2),
        kLatents: poison(given.kLatents, keyRanks),
        vLatents: poison(given.vLatents, valueRanks),
      },
      100,
    );
  });
});

describe("rebuilt keys", () => {
  it("make the attention of plain keys and latent values", async () => {
    const given = paluCase(paluSpec({ keyBias: true }), { ranksK: [6, 4], ranksV: [5, 5] }, mixed);
    const got = await paluOnDevice(device, given);
    const dense = denseCase(given);
    expect(largestError(got.out, Float32Array.from(dense.out))).toBeLessThan(5e-6);
    expect(largestError(got.lse, Float32Array.from(dense.lse))).toBeLessThan(3e-6);
  });

  it("take their bias before the rotation, not after it", async () => {
    const given = paluCase(paluSpec({ keyBias: true }), { ranksK: [6, 4], ranksV: [5, 5] }, mixed);
    const after = denseCase(given, "after rope");
    expect(largestError((await paluOnDevice(device, given)).out, Float32Array.from(after.out))).toBeGreaterThan(0.01);
  });

  it("rotate by their absolute position, far out and with an offset of the whole sequence", async () => {
    const lengths = [
      { queryLen: 1, kvLen: 33 },
      { queryLen: 3, kvLen: 40 },
    ];
    const spec = paluSpec({ splitSize: 32, slidingWindow: 20 });
    const positionOffsets = Int32Array.of(65_500, 7);
    const given = paluCase(spec, { ranksK: [6, 4], ranksV: [3, 5] }, lengths, 1, { positionOffsets });
    await expectEqualsReference(given, 100);
    const unmoved = paluOnReference({ ...given, batch: { ...given.batch, positionOffsets: undefined } });
    expect(largestError((await paluOnDevice(device, given)).out, unmoved.out)).toBeGreaterThan(0.01);
  });

  it("come out of the sum in f32, also where latents are f16", async () => {
    // 64 products of 2048 and 1 / 64: a sum in f16 stalls at steps of 2, one in f32 is exact.
    const rank = 64;
    const spec = paluSpec({
      storage: "f16",
      maxRankK: rank,
      numQHeads: 1,
      numKvHeads: 1,
      rope: undefined,
      headDim: 8,
      smScale: 1,
    });
    const given = paluCase(spec, { ranksK: [rank], ranksV: [5] }, [{ queryLen: 1, kvLen: 1 }]);
    const page = given.batch.blockTables[0] * 4;
    const kLatents = given.kLatents.slice();
    for (let r = 0; r < rank; r++) kLatents[page * rank + r] = r === 0 ? 2048 : 1;
    const upK = new Float32Array(rank * 8).fill(1);
    const q = new Float32Array(8).fill(1 / 8);
    const { lse } = await paluOnDevice(device, { ...given, kLatents, upK, q });
    expect(lse[0]).toBe(2048 + 63);
  });
});

/** The same call on keys rebuilt by the test, as plain attention with values as wide as their latents. */
function denseCase(given: PaluCase, bias: "before rope" | "after rope" = "before rope") {
  const { spec, ranks, batch, upK, keyBias, layout } = given;
  const { numKvHeads, headDim, maxRankV } = spec;
  const numSlots = given.kLatents.length / layout.keyRanks;
  const kPages = new Float64Array(numSlots * numKvHeads * headDim).fill(Number.NaN);
  const vPages = new Float64Array(numSlots * numKvHeads * maxRankV).fill(Number.NaN);
  for (let s = 0; s < batch.numSeqs; s++) {
    for (let t = 0; t < batch.kvLens[s]; t++) {
      const slot = batch.blockTables[s * batch.maxPages + Math.floor(t / 4)] * 4 + (t % 4);
      let upAt = 0;
      for (let head = 0; head < numKvHeads; head++) {
        const group = Math.floor((head * ranks.ranksK.length) / numKvHeads);
        const rank = ranks.ranksK[group];
        const latent = slot * layout.keyRanks + (group === 0 ? 0 : ranks.ranksK[0]);
        const key = Array.from({ length: headDim }, (_, d) => {
          let value = keyBias && bias === "before rope" ? keyBias[head * headDim + d] : 0;
          for (let r = 0; r < rank; r++) value += given.kLatents[latent + r] * upK[upAt + r * headDim + d];
          return value;
        });
        const half = headDim / 2;
        for (let i = 0; i < half; i++) {
          const angle = t * 10000 ** (-i / half);
          const [a, b] = [key[i], key[i + half]];
          key[i] = a * Math.cos(angle) - b * Math.sin(angle);
          key[i + half] = b * Math.cos(angle) + a * Math.sin(angle);
        }
        if (keyBias && bias === "after rope") for (let d = 0; d < headDim; d++) key[d] += keyBias[head * headDim + d];
        kPages.set(key, (slot * numKvHeads + head) * headDim);
        const value = slot * layout.valueRanks + group * ranks.ranksV[0];
        vPages.set(given.vLatents.subarray(value, value + maxRankV), (slot * numKvHeads + head) * maxRankV);
        upAt += rank * headDim;
      }
    }
  }
  const { numQHeads, pageSize, causal, smScale } = spec;
  return attentionReference({ numQHeads, numKvHeads, headDim, headDimV: maxRankV, pageSize, causal, smScale }, batch, {
    q: given.q,
    kPages,
    vPages,
    kStrides: nhdStrides({ pageSize, numKvHeads, headDim }),
    vStrides: nhdStrides({ pageSize, numKvHeads, headDim: maxRankV }),
  });
}

describe("one plan", () => {
  it("serves layers of other ranks and groups", async () => {
    const spec = paluSpec({ maxRankK: 9, maxRankV: 9, keyBias: false });
    const [first, second] = [
      paluCase(spec, { ranksK: [9, 4], ranksV: [2, 7] }, mixed, 1),
      paluCase(spec, { ranksK: [5], ranksV: [9] }, mixed, 1),
    ];
    const before = device.stats().numKernels;
    await expectEqualsReference(first);
    const after = device.stats().numKernels;
    await expectEqualsReference(second);
    expect(device.stats().numKernels).toBe(after);
    expect(after).toBeGreaterThan(before);
  });

  it("gives the same bits however the keys are split between tasks", async () => {
    const lengths = [{ queryLen: 1, kvLen: 200 }, ...mixed];
    const given = paluCase(paluSpec({ splitSize: 32 }), { ranksK: [6, 4], ranksV: [3, 5] }, lengths);
    const [whole, split] = [await paluOnDevice(device, given, 1), await paluOnDevice(device, given, 1000)];
    expect(bits(split.out)).toEqual(bits(whole.out));
    expect(bits(split.lse)).toEqual(bits(whole.lse));
  });
});

it("keys and values may share pages, and outputs may lie in wider rows", async () => {
  const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
  const given = paluCase(paluSpec(), ranks, mixed);
  const { spec, batch, layout } = given;
  const [keyRow, valueRow, row] = [10, 8, 21];
  const numSlots = batch.numPages * 4;
  const buffers: DeviceBuffer[] = [];
  const upload = (shape: readonly number[], values: Float32Array) => {
    const buffer = device.allocate(values.byteLength, "test");
    buffers.push(buffer);
    device.f32(buffer).set(values);
    return { pointer: buffer.pointer, shape, type: "f32" as const };
  };
  const shared = new Float32Array(numSlots * row).fill(Number.NaN);
  for (let slot = 0; slot < numSlots; slot++) {
    shared.set(given.kLatents.subarray(slot * keyRow, (slot + 1) * keyRow), slot * row);
    shared.set(given.vLatents.subarray(slot * valueRow, (slot + 1) * valueRow), slot * row + keyRow + 1);
  }
  const pages = upload([batch.numPages, 4, row], shared);
  const strides = [4 * row, row, 1];
  const layer = new PaluLayer(device, spec, { ...ranks, upK: given.upK });
  const attention = new BatchPaluAttention(device, spec);
  attention.plan(batch);
  const { numRows } = batch;
  const wide = upload([numRows, 30], new Float32Array(numRows * 30).fill(9));
  const out = { ...wide, shape: [numRows, layout.outRow], rowStride: 30, pointer: wide.pointer + 8 };
  const ropeTable = given.ropeTable ?? new Float32Array(0);
  const { lse } = await attention.run({
    layer,
    cache: {
      pages: {
        k: { ...pages, shape: [batch.numPages, 4, keyRow], strides },
        v: { ...pages, shape: [batch.numPages, 4, valueRow], strides, pointer: pages.pointer + (keyRow + 1) * 4 },
      },
    },
    q: upload([numRows, 4, 16], given.q),
    ropeTable: upload([ropeTable.length / 16, 16], ropeTable),
    out,
  });
  const got = device.f32At(wide.pointer, numRows * 30).slice();
  const want = new Float32Array(numRows * 30).fill(9);
  const { out: latents } = paluOnReference(given);
  for (let i = 0; i < numRows; i++) want.set(latents.subarray(i * 16, (i + 1) * 16), i * 30 + 2);
  expect(largestError(got, want)).toBeLessThan(5e-6);
  if (lse?.buffer) buffers.push(lse.buffer);
  for (const buffer of buffers) device.free(buffer);
  attention.release();
  layer.release();
});

describe("absorbed keys", () => {
  it("score as rebuilt ones do where keys are not rotated", async () => {
    const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
    const rebuilt = paluCase(paluSpec({ rope: undefined, alibi: true }), ranks, mixed);
    const { upK, spec } = rebuilt;
    const q = absorbQueries(rebuilt.q, upK, ranks.ranksK, spec);
    const absorbed: PaluCase = { ...rebuilt, spec: { ...spec, keys: "absorbed" }, q };
    const [got, want] = [await paluOnDevice(device, absorbed), paluOnReference(rebuilt)];
    expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
  });

  it("do not read queries past the rank of their group", async () => {
    const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
    const rebuilt = paluCase(paluSpec({ rope: undefined }), ranks, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, ranks.ranksK, rebuilt.spec);
    const poisoned = q.map((value, i) => (i % 6 >= 4 && Math.floor(i / 6) % 4 >= 2 ? Number.NaN : value));
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed" };
    const got = await paluOnDevice(device, { ...rebuilt, spec, q: poisoned });
    expect(largestError(got.out, paluOnReference(rebuilt).out)).toBeLessThan(5e-6);
  });

  it("are refused with rope or a bias", () => {
    expect(() => new BatchPaluAttention(device, paluSpec({ keys: "absorbed" }))).toThrow(
      "rope needs latent.keys = rebuilt",
    );
    expect(
      () => new BatchPaluAttention(device, paluSpec({ keys: "absorbed", rope: undefined, keyBias: true })),
    ).toThrow("latent.bias needs latent.keys = rebuilt");
  });
});

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
    const given = paluCase(spec, ranks, decode);
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

it("stored latents of a constant row decode to about that constant", () => {
  for (const bitCount of [2, 3, 4, 8] as const) {
    const storage: PageStorage = { kind: "grouped", bits: bitCount, groupSize: 0 };
    const rows = stored(storage, [9, 7], new Float32Array(16).fill(0.25));
    expect(rows.every((value) => Number.isFinite(value))).toBe(true);
  }
});
