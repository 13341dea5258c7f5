import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type PaluCase,
  paluCase,
  paluOnDevice,
  paluOnReference,
  paluSpec,
} from "../../../test/fixtures/attention/palu.ts";
import { bits, type Lengths, largestError } from "../../../test/fixtures/attention/ragged.ts";
import { CpuDevice, type DeviceBuffer } from "../../devices/index.ts";
import type { PageStorage } from "../../ops/attention/index.ts";
import { BatchPaluAttention, PaluLayer, type PaluSpec } from "./index.ts";

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

  it.each([16, 5])("for every storage type in pages of %i tokens", async (pageSize) => {
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

  it("for any ragged batch over any groups, ranks and storages, split in any way", () => {
    const rank = fc.integer({ min: 1, max: 20 });
    const storage = fc.constantFrom<PageStorage>(
      "f32",
      "f16",
      "i8",
      { kind: "grouped", bits: 3, groupSize: 8 },
      { kind: "grouped", bits: 4, groupSize: 0 },
    );
    const sequences = fc.array(
      fc
        .record({ kvLen: fc.integer({ min: 0, max: 140 }), share: fc.double({ min: 0, max: 1, noNaN: true }) })
        .map(({ kvLen, share }) => ({ kvLen, queryLen: Math.round(kvLen * share) })),
      { maxLength: 4 },
    );
    const specs = fc.constantFrom<Partial<PaluSpec>>(
      { pageSize: 3, slidingWindow: 20 },
      { headDim: 6, keyBias: true },
      { numQHeads: 12, pageSize: undefined, softCap: 3 },
    );
    return fc.assert(
      fc.asyncProperty(
        fc.constantFrom(1, 2, 4).chain((groups) => {
          const ranks = fc.array(rank, { minLength: groups, maxLength: groups });
          return fc.record({ ranksK: ranks, ranksV: ranks });
        }),
        specs,
        fc.tuple(storage, storage),
        sequences,
        fc.constantFrom(1, 4, 1000),
        (ranks, changes, [keys, values], lengths, threads) => {
          const shared = { numQHeads: 4, numKvHeads: 4, maxRankK: 20, maxRankV: 20, splitSize: 32 };
          const spec = paluSpec({ ...shared, storage: keys, valueStorage: values, ...changes });
          return expectEqualsReference(paluCase(spec, ranks, lengths), threads);
        },
      ),
      { numRuns: 40, seed: 7 },
    );
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
