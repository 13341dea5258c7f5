import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { storedTensor } from "../../test/fixtures/attention/mlaCase.ts";
import { bitsOf, normals, TestDevice, worstError } from "../../test/ops/testDevice.ts";
import { decodeFp8Tokens, encodeFp8Tokens, mlaReference, sparseMlaReference } from "../attention/mla/index.ts";
import { mergeState } from "../ops/mergeStates/index.ts";
import { type FlashMlaResult, flashMlaWithKvcache } from "./flashMla.ts";
import type { FlashMlaOptions } from "./flashMlaCall.ts";
import { FlashMLASchedMeta, getMlaMetadata } from "./flashMlaMetadata.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };
const dims = { kvLoraRank: 512, qkRopeHeadDim: 64, qkNopeHeadDim: 1, vHeadDim: 1, pageSize: 64 };
const width = 576;

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

/** Two sequences of 70 and 3 tokens and one without any, in pages of a pool that is NaN elsewhere. */
const numPages = 5;
const seqlens = Int32Array.of(70, 3, 0);
const table = { values: Int32Array.of(4, 0, 2, 2147480000, -1, 2147480000), shape: [3, 2] as const };
const rows = normals(numPages * 64 * width, 1).map((value) => value / 3);
for (let slot = 0; slot < numPages * 64; slot++) {
  const [page, offset] = [Math.floor(slot / 64), slot % 64];
  const isUsed = page === 4 || (page === 0 && offset < 6) || (page === 2 && offset < 3);
  if (!isUsed) rows.fill(NaN, slot * width, (slot + 1) * width);
}

const part = (values: Float32Array, from: number, to: number) =>
  values.filter((_, i) => i % width >= from && i % width < to);

/** The dense reference of one kv head: q [3 * queries, heads, 576]. */
function dense(
  q: Float32Array,
  heads: number,
  queries: number,
  causal: boolean,
  cache: Float32Array,
  smScale = width ** -0.5,
) {
  const spec = { ...dims, numHeads: heads, smScale, causal };
  const queryIndptr = Int32Array.from([0, 1, 2, 3], (s) => s * queries);
  const step = {
    numRows: 3 * queries,
    numSeqs: 3,
    queryIndptr,
    kvLens: seqlens,
    blockTables: table.values,
    maxPages: 2,
    numPages,
    allowUnseeing: true,
  };
  return mlaReference(spec, step, {
    qLatent: part(q, 0, 512),
    qPe: part(q, 512, width),
    ckvCache: part(cache, 0, 512),
    kpeCache: part(cache, 512, width),
  });
}

/** Compares with rows of [batch * queries, heads] and frees. */
function expectResult(result: FlashMlaResult, want: { z: Float64Array; lse: Float64Array }): Uint32Array {
  const [batch, heads, queries] = result.lse.shape;
  const out = test.device.f32At(result.out.pointer, want.z.length);
  expect(worstError(out, want.z, tolerance)).toBeLessThan(1);
  const lse = test.device.f32At(result.lse.pointer, want.lse.length);
  for (const [at, value] of want.lse.entries()) {
    const [row, head] = [Math.floor(at / heads), at % heads];
    const got = lse[(Math.floor(row / queries) * heads + head) * queries + (row % queries)];
    if (value === -Infinity) expect(got).toBe(Infinity);
    else expect(Math.abs(got - value)).toBeLessThan(1e-5);
  }
  expect(result.out.shape).toEqual([batch, queries, heads, 512]);
  const bits = bitsOf(Float32Array.from(out));
  for (const { buffer } of [result.out, result.lse]) if (buffer) test.device.free(buffer);
  return bits;
}

describe("flashMlaWithKvcache, dense", () => {
  it.each([
    [1, 1, false],
    [2, 3, true],
    [4, 2, false],
  ] as const)("attends %i queries of %i heads, causal %s", async (queries, heads, causal) => {
    const q = normals(3 * queries * heads * width, 2);
    const tensors = [
      test.f32([3, queries, heads, width], q),
      storedTensor(test, "f32", [numPages, 64, 1, width], rows),
    ] as const;
    const [meta] = getMlaMetadata();
    // The default scale is of all 576 channels.
    expectResult(
      await flashMlaWithKvcache(test.device, ...tensors, table, seqlens, 512, meta, { causal }),
      dense(q, heads, queries, causal, rows),
    );
    meta.release();
    const scaled = await flashMlaWithKvcache(test.device, ...tensors, table, seqlens, 512, meta, {
      causal,
      softmaxScale: 192 ** -0.5,
    });
    expectResult(scaled, dense(q, heads, queries, causal, rows, 192 ** -0.5));
    meta.release();
  });

  it("attends several kv heads, each with its group of query heads", async () => {
    const [queries, heads, numKvHeads] = [2, 4, 2];
    const q = normals(3 * queries * heads * width, 3);
    const other = rows.map((value) => -0.5 * value);
    const both = Float32Array.from({ length: 2 * rows.length }, (_, i) => {
      const [slot, head, d] = [Math.floor(i / (2 * width)), Math.floor(i / width) % 2, i % width];
      return (head === 0 ? rows : other)[slot * width + d];
    });
    const kCache = test.f32([numPages, 64, numKvHeads, width], both);
    const meta = new FlashMLASchedMeta();
    const result = await flashMlaWithKvcache(
      test.device,
      test.f32([3, queries, heads, width], q),
      kCache,
      table,
      seqlens,
      512,
      meta,
    );
    const groups = [rows, other].map((cache, group) => {
      const own = q.filter((_, i) => Math.floor((Math.floor(i / width) % heads) / 2) === group);
      return dense(own, 2, queries, false, cache);
    });
    const joined = (values: (group: number) => Float64Array, channels: number) =>
      Float64Array.from({ length: 3 * queries * heads * channels }, (_, i) => {
        const [row, head, d] = [Math.floor(i / (heads * channels)), Math.floor(i / channels) % heads, i % channels];
        return values(Math.floor(head / 2))[(row * 2 + (head % 2)) * channels + d];
      });
    expectResult(result, { z: joined((g) => groups[g].z, 512), lse: joined((g) => groups[g].lse, 1) });
    meta.release();
  });

  it("reads rows of 656 bytes, and reuses a plan for the next layer", async () => {
    const q = normals(3 * 2 * width, 4);
    const bytes = encodeFp8Tokens(dims, rows);
    const tensors = [test.f32([3, 1, 2, width], q), test.bytes([numPages, 64, 1, 656], "u8", bytes)] as const;
    const [meta] = getMlaMetadata();
    const run = () => flashMlaWithKvcache(test.device, ...tensors, table, seqlens, 512, meta, { isFp8Kvcache: true });
    const first = expectResult(await run(), dense(q, 2, 1, false, decodeFp8Tokens(dims, bytes)));
    expect(expectResult(await run(), dense(q, 2, 1, false, decodeFp8Tokens(dims, bytes)))).toEqual(first);
    const changed = flashMlaWithKvcache(test.device, ...tensors, table, seqlens, 512, meta, {
      isFp8Kvcache: true,
      causal: true,
    });
    await expect(changed).rejects.toThrow("tileSchedulerMetadata was made for");
    const scaled = flashMlaWithKvcache(test.device, ...tensors, table, seqlens, 512, meta, {
      isFp8Kvcache: true,
      softmaxScale: 0.1,
    });
    await expect(scaled).rejects.toThrow('"softmaxScale":0.1');
    meta.release();
  });
});

describe("flashMlaWithKvcache, sparse", () => {
  const [batch, queries, heads, topk] = [2, 2, 3, 4];
  const q = normals(batch * queries * heads * width, 5);
  const values = Int32Array.of(4 * 64, 4 * 64 + 9, -1, 5, -1, -1, -1, -1, 130, 2147480000, 128, 2, 64 * 4 + 1, 1, 0, 3);
  const indices = { values, shape: [batch, queries, topk] as const };
  const bytes = encodeFp8Tokens(dims, rows);
  const cache = decodeFp8Tokens(dims, bytes);
  const valid = values.map((slot) => (slot < numPages * 64 ? slot : -1));
  const reference = (topkLength?: Int32Array, sinks?: Float32Array) => {
    const lengths =
      topkLength && Int32Array.from({ length: batch * queries }, (_, row) => topkLength[Math.floor(row / queries)]);
    const shape = { ...dims, numHeads: heads, smScale: width ** -0.5 };
    return sparseMlaReference(shape, { q, kvCache: cache, indices: valid, topk, lengths, sinks });
  };
  const run = async (options: FlashMlaOptions) => {
    const tensors = [
      test.f32([batch, queries, heads, width], q),
      test.bytes([numPages, 64, 1, 656], "u8", bytes),
    ] as const;
    const [meta] = getMlaMetadata();
    try {
      return await flashMlaWithKvcache(test.device, ...tensors, undefined, undefined, 512, meta, {
        indices,
        isFp8Kvcache: true,
        ...options,
      });
    } finally {
      meta.release();
    }
  };

  it("attends the listed tokens, as many as their length says", async () => {
    expectResult(await run({}), reference());
    const topkLength = Int32Array.of(2, 3);
    expectResult(await run({ topkLength }), reference(topkLength));
  });

  it("scales by a sink that the LSE leaves out; one of +infinity makes zeros", async () => {
    const sinks = Float32Array.of(0.5, -Infinity, Infinity);
    const want = reference(undefined, Float32Array.of(0.5, -Infinity, 1e30));
    expectResult(await run({ attnSink: test.f32([heads], sinks) }), want);
  });

  it("attends the tokens of a second cache besides, under one sink", async () => {
    const sinks = Float32Array.of(0.5, -1, 2);
    const extraRows = normals(64 * width, 6).map((value) => value / 3);
    const extraBytes = encodeFp8Tokens(dims, extraRows);
    const extraValues = Int32Array.of(0, 63, 7, 8, -1, -1, 12, 1);
    const extra = { values: extraValues, shape: [batch, queries, 2] as const };
    const extraTopkLength = Int32Array.of(1, 2);
    const result = await run({
      attnSink: test.f32([heads], sinks),
      extraKCache: test.bytes([1, 64, 1, 656], "u8", extraBytes),
      extraIndicesInKvcache: extra,
      extraTopkLength,
    });
    const shape = { ...dims, numHeads: heads, smScale: width ** -0.5 };
    const second = sparseMlaReference(shape, {
      q,
      kvCache: decodeFp8Tokens(dims, extraBytes),
      indices: extraValues,
      topk: 2,
      lengths: [1, 1, 2, 2],
    });
    const first = reference();
    const merged = mergeState(
      { numHeads: heads, headDim: 512 },
      { v: first.z, s: first.lse },
      { v: second.z, s: second.lse },
    );
    const z = merged.v.map((value, i) => {
      const lse = merged.s[Math.floor(i / 512)];
      return lse === -Infinity ? 0 : value / (1 + Math.exp(sinks[Math.floor(i / 512) % heads] - lse));
    });
    expectResult(result, { z, lse: merged.s });
  });
});

describe("what flashMlaWithKvcache refuses", () => {
  it.each([
    [{ qShape: [3, 1, 2, 500] }, {}, "q.shape[3] = 500 must be 576 or 512"],
    [{ qShape: [3, 2, 576] }, {}, "q.shape = [3, 2, 576] must be [batch, queries, heads, channels]"],
    [{ headDimV: 128 }, {}, "headDimV = 128 must be 512"],
    [{ kShape: [5, 32, 1, 576] }, {}, "kCache.shape[1] = 32 must be 64, the tokens of a page"],
    [{ kShape: [5, 64, 1, 512] }, {}, "kCache.shape = [5, 64, 1, 512] must be [pages, pageSize, kvHeads, 576]"],
    [{ kShape: [5, 64, 3, 576] }, {}, "heads of q = 2 must be divisible by those of kCache = 3"],
    [{ kType: "i32" }, {}, "kCache.type = i32 must be a floating-point type"],
    [{}, { isFp8Kvcache: true }, "kCache.type = f32 must be u8"],
    [{ table: undefined }, {}, "blockTable must be given without indices"],
    [{ seqlens: Int32Array.of(1, 2) }, {}, "cacheSeqlens.length = 2 must be 3, the batch of q"],
    [
      { table: { values: Int32Array.of(1, 2), shape: [2, 1] } },
      {},
      "blockTable.shape[0] = 2 must be 3, the batch of q",
    ],
    [{}, { topkLength: Int32Array.of(1, 1, 1) }, "topkLength must be absent without indices"],
    [
      {},
      { indices: { values: new Int32Array(3), shape: [3, 1, 1] }, causal: true },
      "causal = true must be false with indices",
    ],
    [
      {},
      { indices: { values: new Int32Array(4), shape: [3, 1, 1] } },
      "indices.values.length = 4 must be 3, as its shape says",
    ],
    [
      {},
      { indices: { values: new Int32Array(3), shape: [1, 3, 1] } },
      "indices.shape = [1, 3, 1] must be [3, 1, topk]",
    ],
    [
      {},
      { indices: { values: new Int32Array(3), shape: [3, 1, 1] }, topkLength: Int32Array.of(1) },
      "topkLength.length = 1 must be 3, the batch of q",
    ],
    [
      {},
      {
        indices: { values: new Int32Array(3), shape: [3, 1, 1] },
        extraIndicesInKvcache: { values: new Int32Array(3), shape: [3, 1, 1] },
      },
      "extraKCache must be given with the other of the two",
    ],
    [
      { kShape: [5, 64, 2, 576] },
      { indices: { values: new Int32Array(3), shape: [3, 1, 1] } },
      "kCache.shape[2] = 2 must be 1 with indices",
    ],
  ] as const)("%o %o", async (changes, options, message) => {
    const given = {
      qShape: [3, 1, 2, 576],
      kShape: [5, 64, 1, 576],
      kType: "f32" as const,
      headDimV: 512,
      table,
      seqlens,
      ...changes,
    };
    const pointer = test.f32([1], [0]).pointer;
    const q = { pointer, shape: given.qShape, type: "f32" } as const;
    const kCache = { pointer, shape: given.kShape, type: given.kType };
    const [meta] = getMlaMetadata();
    const used = test.device.stats().usedBytes;
    await expect(
      flashMlaWithKvcache(test.device, q, kCache, given.table, given.seqlens, given.headDimV, meta, options),
    ).rejects.toThrow(message);
    expect(test.device.stats().usedBytes).toBe(used);
  });
});
