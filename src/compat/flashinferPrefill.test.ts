import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  defaultSpec,
  type Lengths,
  numbers,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { caches, compressed, expectClose, reference, rope, taken } from "../../test/fixtures/compat/flashinfer.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { packMask } from "../attention/index.ts";
import { attentionReference } from "../ops/attention/index.ts";
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
    const result = await wrapper.run(test.f32([numRows, numQHeads, headDim], given.q), caches(test, given).NHD, {
      returnLse: true,
    });
    wrapper.release();
    return taken(test, result);
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
    expectClose(taken(test, result), { out: Float32Array.from(want.out), lse: Float32Array.from(want.lse) });
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
