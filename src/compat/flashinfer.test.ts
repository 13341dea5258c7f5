import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { everyForm } from "../../test/fixtures/attention/pageForms.ts";
import {
  defaultSpec,
  type Lengths,
  largestError,
  numbers,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { type AttentionResult, freeResult, packMask } from "../attention/index.ts";
import { type AttentionBatch, type AttentionSpec, attentionReference, nhdStrides } from "../ops/attention/index.ts";
import { RopeTable } from "../ops/rope/index.ts";
import { numElements } from "../tensor/index.ts";
import { alibiSlopes } from "./alibiSlopes.ts";
import { BatchDecodeWithPagedKVCacheWrapper } from "./flashinferDecode.ts";
import type { PosEncodingMode } from "./flashinferOptions.ts";
import type { PagedKvCache } from "./flashinferPages.ts";
import {
  type BatchPrefillPlanOptions,
  BatchPrefillWithPagedKVCacheWrapper,
  BatchPrefillWithRaggedKVCacheWrapper,
} from "./flashinferPrefill.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

/** FlashInfer's arrays for the case's tables. */
function compressed({ spec, batch }: RaggedCase) {
  const { pageSize = 1 } = spec;
  const { numSeqs, kvLens, blockTables, maxPages } = batch;
  const indptr = new Int32Array(numSeqs + 1);
  const lastPageLen = new Int32Array(numSeqs);
  const indices: number[] = [];
  for (let s = 0; s < numSeqs; s++) {
    const held = Math.ceil(kvLens[s] / pageSize);
    for (let j = 0; j < held; j++) indices.push(blockTables[s * maxPages + j]);
    indptr[s + 1] = indices.length;
    lastPageLen[s] = held === 0 ? 0 : kvLens[s] - (held - 1) * pageSize;
  }
  return { indptr, indices: Int32Array.from(indices), lastPageLen };
}

function caches(given: RaggedCase): Record<"NHD" | "HND" | "pair", PagedKvCache> {
  const { pageSize = 1, numKvHeads, headDim } = given.spec;
  const forms = everyForm(test, {
    numPages: given.batch.numPages,
    pageSize,
    numKvHeads,
    headDim,
    k: given.kPages,
    v: given.vPages,
  });
  const five = (name: string) => {
    const { cache } = forms[name];
    if (!("kv" in cache)) throw new Error("not one tensor");
    return cache.kv;
  };
  const { cache } = forms["a pair in NHD"];
  if (!("k" in cache)) throw new Error("not a pair");
  return { NHD: five("five axes in NHD"), HND: five("five axes in HND"), pair: [cache.k, cache.v] };
}

function taken(result: AttentionResult) {
  const read = (tensor: AttentionResult["lse"]) =>
    tensor ? test.device.f32At(tensor.pointer, numElements(tensor.shape)).slice() : new Float32Array();
  const copies = { out: read(result.out), lse: read(result.lse) };
  freeResult(test.device, result);
  return copies;
}

/** The reference under a spec, with the tables that the position encoding of the plan implies. */
function reference(
  given: RaggedCase,
  changes: Partial<AttentionSpec>,
  batch: Partial<AttentionBatch> = {},
  mode: PosEncodingMode = "NONE",
  extra: object = {},
) {
  const { storage: _, alibi, sinks, ...spec } = { ...given.spec, lseBase: "2" as const, ...changes };
  const { headDim } = spec;
  const strides = nhdStrides(spec);
  const table = new RopeTable({
    headDim,
    rotaryDim: headDim,
    style: "halves",
    theta: 500,
    scaling: { type: "linear", factor: 2 },
  });
  const { out, lse } = attentionReference(
    { ...spec, rope: mode === "ROPE_LLAMA" ? { style: "halves", dim: headDim, queries: true } : undefined },
    { ...given.batch, allowUnseeing: true, ...batch },
    {
      q: given.q,
      kPages: given.kPages,
      vPages: given.vPages,
      kStrides: strides,
      vStrides: strides,
      alibiSlopes: mode === "ALIBI" ? alibiSlopes(spec.numQHeads) : undefined,
      ropeTable: table.rows(1 + Math.max(...given.batch.kvLens.subarray(0, given.batch.numSeqs))),
      ...extra,
    },
  );
  return { out: Float32Array.from(out), lse: Float32Array.from(lse) };
}

const rope = { ropeTheta: 500, ropeScale: 2 };

function expectClose(
  got: { out: Float32Array; lse: Float32Array },
  want: { out: Float32Array; lse: Float32Array },
): void {
  expect(largestError(got.out, want.out)).toBeLessThan(1e-5);
  expect(largestError(got.lse, want.lse)).toBeLessThan(1e-5);
}

describe("BatchDecodeWithPagedKVCacheWrapper", () => {
  const lens = (kvLens: readonly number[], queryLen = 1): readonly Lengths[] =>
    kvLens.map((kvLen) => ({ queryLen, kvLen }));

  const grid = [1, 8, 16].flatMap((ps) =>
    [0, 30].flatMap((cap) => (["NONE", "ROPE_LLAMA", "ALIBI"] as const).map((mode) => [ps, cap, mode] as const)),
  );
  it.each(grid)(
    "equals the reference: pages of %i, soft cap %f, %s",
    async (pageSize, logitsSoftCap, posEncodingMode) => {
      const spec = defaultSpec({ headDim: 64, numQHeads: 8, numKvHeads: 2, pageSize });
      const given = raggedCase(spec, lens([54, 97, 16, 1, 130]));
      const { indptr, indices, lastPageLen } = compressed(given);
      const q = test.f32([5, 8, 64], given.q);
      const all = caches(given);
      const want = reference(given, { softCap: logitsSoftCap || undefined }, {}, posEncodingMode);
      for (const layout of ["NHD", "HND"] as const) {
        const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device, layout);
        wrapper.plan(indptr, indices, lastPageLen, 8, 2, 64, pageSize, { posEncodingMode, logitsSoftCap, ...rope });
        expectClose(taken(await wrapper.run(q, all[layout], { returnLse: true })), want);
        wrapper.release();
      }
    },
  );

  it("takes scales, sinks and a window at each run, and plans each for the current step", async () => {
    const spec = defaultSpec({ pageSize: 4, slidingWindow: undefined });
    const sinks = Float32Array.of(1, 0, -1, 2);
    const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device);
    for (const kvLens of [[5, 40, 0], [17, 4], [33]]) {
      const given = raggedCase(spec, lens(kvLens));
      const arrays = compressed(given);
      wrapper.plan(arrays.indptr, arrays.indices, arrays.lastPageLen, 4, 2, 16, 4);
      // The plan has copies: what the caller writes next is about another step.
      for (const array of Object.values(arrays)) array.fill(-5);
      const q = test.f32([kvLens.length, 4, 16], given.q);
      const { pair } = caches(given);
      expectClose(
        { ...taken(await wrapper.run(q, pair)), lse: new Float32Array() },
        { ...reference(given, {}), lse: new Float32Array() },
      );
      expectClose(
        taken(await wrapper.run(q, pair, { windowLeft: 6, returnLse: true })),
        reference(given, { slidingWindow: 7 }),
      );
      const scaled = { qScale: 0.5, kScale: 3, vScale: 2, sinks: test.f32([4], sinks), returnLse: true };
      expectClose(
        taken(await wrapper.run(q, pair, scaled)),
        reference(given, {}, {}, "NONE", { kScale: 1.5, vScale: 2, sinks }),
      );
    }
    wrapper.release();
  });

  it("decodes several tokens of each sequence", async () => {
    const given = raggedCase(defaultSpec({ pageSize: 4 }), lens([9, 3, 30], 3));
    const { indptr, indices, lastPageLen } = compressed(given);
    const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device);
    wrapper.plan(indptr, indices, lastPageLen, 4, 2, 16, 4, { qLenPerReq: 3, windowLeft: 4, smScale: 0.5 });
    const result = await wrapper.run(test.f32([9, 4, 16], given.q), caches(given).NHD, { returnLse: true });
    expectClose(taken(result), reference(given, { slidingWindow: 5, smScale: 0.5 }));
    wrapper.release();
  });

  it("gives zeros for sequences without keys, under every position encoding", async () => {
    const indptr = Int32Array.of(0, 0, 0);
    const [q, kv] = [
      test.f32([2, 4, 16], numbers(1, 128)),
      test.f32([1, 2, 4, 2, 16], new Float32Array(256).fill(Number.NaN)),
    ];
    const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device);
    for (const posEncodingMode of ["NONE", "ROPE_LLAMA", "ALIBI"] as const) {
      wrapper.plan(indptr, new Int32Array(0), Int32Array.of(0, 9), 4, 2, 16, 4, { posEncodingMode });
      const { out, lse } = taken(await wrapper.run(q, kv, { returnLse: true }));
      expect(out.every((x) => x === 0)).toBe(true);
      expect(lse.every((x) => x === -Infinity)).toBe(true);
    }
    wrapper.release();
  });

  it("names what does not fit", async () => {
    const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device);
    const good = {
      indptr: Int32Array.of(0, 2, 3),
      indices: Int32Array.of(4, 0, 2),
      lastPageLen: Int32Array.of(4, 1),
      heads: 4,
      kvHeads: 2,
      pageSize: 4,
      options: {},
    };
    const plan = (changes: { [K in keyof typeof good]?: unknown } = {}) => {
      const all = { ...good, ...(changes as Partial<typeof good>) };
      wrapper.plan(all.indptr, all.indices, all.lastPageLen, all.heads, all.kvHeads, 16, all.pageSize, all.options);
    };
    const fails = (changes: { [K in keyof typeof good]?: unknown }, message: string) =>
      expect(() => plan(changes)).toThrow(message);
    const q = test.f32([2, 4, 16], numbers(1, 128));
    const kv = test.f32([5, 2, 4, 2, 16], numbers(2, 1280));
    await expect(wrapper.run(q, kv)).rejects.toThrow("plan must be called before run");
    fails({ indptr: [0, 2, 3] }, "indptr must be an Int32Array, got Array");
    fails({ indices: Uint32Array.of(4, 0, 2) }, "indices must be an Int32Array, got Uint32Array");
    fails({ lastPageLen: Int32Array.of(4) }, "lastPageLen.length = 1 must be 2, one less than indptr");
    fails({ indptr: new Int32Array(0) }, "indptr.length = 0 must be the batch size and 1");
    fails({ indptr: Int32Array.of(0, 2, 1) }, "indptr[2] = 1 must be from 2 to indices.length = 3");
    fails({ indptr: Int32Array.of(0, 2, 4) }, "indptr[2] = 4 must be from 2 to indices.length = 3");
    fails(
      { lastPageLen: Int32Array.of(0, 1) },
      "lastPageLen[0] = 0 must be from 1 to pageSize = 4: a full page has that many",
    );
    fails({ lastPageLen: Int32Array.of(4, 5) }, "lastPageLen[1] = 5 must be from 1 to pageSize = 4");
    fails({ indices: Int32Array.of(4, -1, 2) }, "blockTables[0][1] = -1 is not a page");
    fails({ heads: 5 }, "numQHeads = 5 must be divisible by numKvHeads = 2");
    fails({ pageSize: 0 }, "pageSize must be an integer of at least 1, got 0");
    fails({ options: { windowLeft: -2 } }, "windowLeft must be an integer of at least -1, got -2");
    fails({ options: { logitsSoftCap: -1 } }, "logitsSoftCap = -1 must be positive, or 0 for none");
    fails({ options: { posEncodingMode: "ROPE" } }, "posEncodingMode = ROPE must be NONE, ROPE_LLAMA or ALIBI");
    fails({ options: { ropeScale: 0 } }, "ropeScale = 0 must be positive");
    fails({ options: { ropeTheta: -1 } }, "ropeTheta = -1 must be positive");
    fails({ options: { qLenPerReq: 0 } }, "qLenPerReq must be an integer of at least 1, got 0");
    // A plan that failed leaves none behind.
    plan();
    fails({ pageSize: 0.5 }, "pageSize must be an integer of at least 1, got 0.5");
    plan();
    await expect(wrapper.run(q, { ...kv, shape: [4, 2, 4, 2, 16] })).rejects.toThrow(
      "cache.kv must have shape [at least 5, 2, 4, 2, 16], got [4, 2, 4, 2, 16]",
    );
    await expect(wrapper.run(q, [kv, kv])).rejects.toThrow("cache.k must have shape [at least 5, 4, 2, 16]");
    await expect(wrapper.run(q, { ...kv, type: "f16" })).rejects.toThrow("cache.kv must be of type f32, got f16");
    await expect(wrapper.run({ ...q, shape: [1, 4, 16] }, kv)).rejects.toThrow(
      "q must have shape [at least 2, 4, 16], got [1, 4, 16]",
    );
    await expect(wrapper.run(q, kv, { kScale: 0 })).rejects.toThrow("kScale = 0 must be positive");
    await expect(wrapper.run(q, kv, { lse: q })).rejects.toThrow("lse must be absent: the spec lacks returnLse");
    expect(() => new BatchDecodeWithPagedKVCacheWrapper(test.device, "HDN" as "HND")).toThrow(
      "kvLayout = HDN must be NHD or HND",
    );
    wrapper.release();
    await expect(wrapper.run(q, kv)).rejects.toThrow("plan must be called before run");
  });
});

const prefill: readonly Lengths[] = [
  { queryLen: 37, kvLen: 97 },
  { queryLen: 1, kvLen: 54 },
  { queryLen: 0, kvLen: 5 },
  { queryLen: 17, kvLen: 17 },
];

describe("BatchPrefillWithPagedKVCacheWrapper", () => {
  const run = async (given: RaggedCase, options: BatchPrefillPlanOptions) => {
    const { indptr, indices, lastPageLen } = compressed(given);
    const { headDim, numQHeads, numKvHeads, pageSize = 1 } = given.spec;
    const { numRows, numSeqs, queryIndptr } = given.batch;
    const wrapper = new BatchPrefillWithPagedKVCacheWrapper(test.device);
    wrapper.plan(
      queryIndptr.slice(0, numSeqs + 1),
      indptr,
      indices,
      lastPageLen,
      numQHeads,
      numKvHeads,
      headDim,
      pageSize,
      options,
    );
    const result = await wrapper.run(test.f32([numRows, numQHeads, headDim], given.q), caches(given).NHD, {
      returnLse: true,
    });
    wrapper.release();
    return taken(result);
  };

  const grid = [1, 5, 16].flatMap((ps) =>
    [64, 128, 256].flatMap((dim) => [false, true].map((causal) => [ps, dim, causal] as const)),
  );
  it.each(grid)("equals the reference: pages of %i, %i channels, causal: %s", async (pageSize, headDim, causal) => {
    const given = raggedCase(
      defaultSpec({ headDim, pageSize, numQHeads: 4, numKvHeads: 4 }),
      prefill.slice(headDim === 64 ? 0 : 1),
    );
    expectClose(await run(given, { causal }), reference(given, { causal }));
  });

  it.each(["ROPE_LLAMA", "ALIBI"] as const)("with %s and a soft cap", async (posEncodingMode) => {
    const given = raggedCase(defaultSpec({ headDim: 24, numQHeads: 6 }), prefill);
    const got = await run(given, { causal: true, posEncodingMode, logitsSoftCap: 3, ...rope });
    expectClose(got, reference(given, { softCap: 3 }, {}, posEncodingMode));
  });

  /** 1 for most pairs; the mask of the first query hides all. */
  const flatMask = (seed: number) => {
    const size = prefill.reduce((sum, { queryLen, kvLen }) => sum + queryLen * kvLen, 0);
    return Array.from(numbers(seed, size), (x, i) => (i < prefill[0].kvLen || x < -0.8 ? 0 : 1));
  };
  const lengths = { qLens: prefill.map(({ queryLen }) => queryLen), kvLens: prefill.map(({ kvLen }) => kvLen) };

  it("lets a mask win over causal, packed bits over booleans, and a window hide keys under both", async () => {
    const given = raggedCase(defaultSpec(), prefill);
    const mask = flatMask(1);
    const packed = packMask(mask, lengths);
    const masked = { causal: false, customMask: true };
    const want = reference(given, masked, { customMask: packed });
    expectClose(await run(given, { causal: true, customMask: mask }), want);
    expectClose(await run(given, { customMask: flatMask(2), packedCustomMask: packed.bits }), want);
    const inWindow = prefill.flatMap(({ queryLen, kvLen }) =>
      Array.from({ length: queryLen * kvLen }, (_, i) => i % kvLen >= kvLen - queryLen + Math.floor(i / kvLen) - 9),
    );
    const windowed = mask.map((x, i) => (inWindow[i] ? x : 0));
    expectClose(
      await run(given, { customMask: mask, windowLeft: 9 }),
      reference(given, masked, { customMask: packMask(windowed, lengths) }),
    );
  });

  it("takes a window with causal, and without it hides only what is before the window", async () => {
    const given = raggedCase(defaultSpec(), prefill);
    expectClose(await run(given, { causal: true, windowLeft: 13 }), reference(given, { slidingWindow: 14 }));
    const open = prefill.flatMap(({ queryLen, kvLen }) =>
      Array.from({ length: queryLen * kvLen }, (_, i) => i % kvLen >= kvLen - queryLen + Math.floor(i / kvLen) - 13),
    );
    const want = reference(given, { causal: false, customMask: true }, { customMask: packMask(open, lengths) });
    expectClose(await run(given, { windowLeft: 13 }), want);
  });

  it.each(["NONE", "ROPE_LLAMA", "ALIBI"] as const)(
    "gives zeros to queries before the first key: %s",
    async (posEncodingMode) => {
      const given = raggedCase(defaultSpec({ headDim: 64 }), [
        { queryLen: 300, kvLen: 7 },
        { queryLen: 4, kvLen: 0 },
      ]);
      const got = await run(given, { causal: true, posEncodingMode, ...rope });
      expectClose(got, reference(given, {}, {}, posEncodingMode));
      expect(got.out.subarray(0, 293 * 4 * 64).every((x) => x === 0)).toBe(true);
    },
  );

  it("names what does not fit", () => {
    const given = raggedCase(defaultSpec(), prefill);
    const { indptr, indices, lastPageLen } = compressed(given);
    const wrapper = new BatchPrefillWithPagedKVCacheWrapper(test.device);
    const plan = (qoIndptr: Int32Array, options: BatchPrefillPlanOptions = {}) =>
      wrapper.plan(qoIndptr, indptr, indices, lastPageLen, 4, 2, 16, 4, options);
    const qo = given.batch.queryIndptr.slice(0, 5);
    expect(() => plan(Int32Array.of(0, 1))).toThrow("qoIndptr.length = 2 must be 5, that of pagedKvIndptr");
    expect(() => plan(Int32Array.of(0, 3, 2, 4, 5))).toThrow("queryIndptr must not fall, got 3 then 2 for sequence 1");
    expect(() => plan(qo, { customMask: [1] })).toThrow(
      "mask must have qLen * kvLen entries of each sequence, together 3932, got 1",
    );
    expect(() => plan(qo, { packedCustomMask: new Uint8Array(3) })).toThrow(
      "packedCustomMask.length = 3 must be 493, each sequence in whole bytes",
    );
    expect(() => plan(qo, { smScale: 0 })).toThrow("smScale = 0 must be positive");
    wrapper.release();
  });
});

describe("BatchPrefillWithRaggedKVCacheWrapper", () => {
  it.each(["NHD", "HND"] as const)("has keys of 24 channels and values of 16, in %s", async (layout) => {
    const [Hq, Hkv, Dqk, Dvo] = [6, 3, 24, 16];
    const qo = Int32Array.of(0, 5, 5, 9);
    const kvIndptr = Int32Array.of(0, 33, 40, 44);
    const [q, k, v] = [numbers(1, 9 * Hq * Dqk), numbers(2, 44 * Hkv * Dqk), numbers(3, 44 * Hkv * Dvo)];
    const strides = (dim: number) => ({ page: Hkv * dim, slot: Hkv * dim, head: dim });
    const want = attentionReference(
      { headDim: Dqk, headDimV: Dvo, numQHeads: Hq, numKvHeads: Hkv, causal: true, smScale: Dqk ** -0.5, lseBase: "2" },
      {
        numRows: 9,
        numSeqs: 3,
        queryIndptr: qo,
        kvLens: Int32Array.of(33, 7, 4),
        blockTables: kvIndptr,
        maxPages: 1,
        numPages: 44,
      },
      { q, kPages: k, vPages: v, kStrides: strides(Dqk), vStrides: strides(Dvo) },
    );
    const rows = (x: Float32Array, dim: number) =>
      layout === "NHD"
        ? test.f32([44, Hkv, dim], x)
        : test.f32(
            [Hkv, 44, dim],
            Array.from(
              x,
              (_, i) => x[((Math.floor(i / dim) % 44) * Hkv + Math.floor(i / (44 * dim))) * dim + (i % dim)],
            ),
          );
    const wrapper = new BatchPrefillWithRaggedKVCacheWrapper(test.device, layout);
    wrapper.plan(qo, kvIndptr, Hq, Hkv, Dqk, { headDimVo: Dvo, causal: true });
    const out = test.f32([9, Hq, Dvo], new Float32Array(9 * Hq * Dvo));
    const result = await wrapper.run(test.f32([9, Hq, Dqk], q), rows(k, Dqk), rows(v, Dvo), { returnLse: true, out });
    expect(result.out).toBe(out);
    expectClose(taken(result), { out: Float32Array.from(want.out), lse: Float32Array.from(want.lse) });
    wrapper.release();
  });

  it("names what does not fit", () => {
    const wrapper = new BatchPrefillWithRaggedKVCacheWrapper(test.device);
    const plan = (qo: Int32Array, kv: Int32Array) => wrapper.plan(qo, kv, 4, 2, 16);
    expect(() => plan(Int32Array.of(0, 2), new Int32Array(0))).toThrow(
      "kvIndptr.length = 0 must be the batch size and 1",
    );
    expect(() => plan(Int32Array.of(0, 2), Int32Array.of(0, 2, 4))).toThrow(
      "qoIndptr.length = 2 must be 3, that of kvIndptr",
    );
    expect(() => plan(Int32Array.of(0, 1, 2), Int32Array.of(0, 3, 2))).toThrow(
      "kvIndptr[2] = 2 must be at least kvIndptr[1] = 3, from 0 on",
    );
    expect(() => plan(Int32Array.of(1, 1, 2), Int32Array.of(0, 3, 4))).toThrow("queryIndptr[0] must be 0, got 1");
    wrapper.release();
  });
});

describe("alibiSlopes", () => {
  it("are powers of 2^(-8/n), with every other one of twice as many for the rest", () => {
    expect([...alibiSlopes(8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((i) => 2 ** -i));
    expect([...alibiSlopes(6)]).toEqual([2 ** -2, 2 ** -4, 2 ** -6, 2 ** -8, 2 ** -1, 2 ** -3]);
    expect([...alibiSlopes(1)]).toEqual([2 ** -8]);
  });
});
