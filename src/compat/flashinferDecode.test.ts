import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { defaultSpec, type Lengths, numbers, raggedCase } from "../../test/fixtures/attention/ragged.ts";
import { caches, compressed, expectClose, reference, rope, taken } from "../../test/fixtures/compat/flashinfer.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { BatchDecodeWithPagedKVCacheWrapper } from "./flashinferDecode.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

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
      const all = caches(test, given);
      const want = reference(given, { softCap: logitsSoftCap || undefined }, {}, posEncodingMode);
      for (const layout of ["NHD", "HND"] as const) {
        const wrapper = new BatchDecodeWithPagedKVCacheWrapper(test.device, layout);
        wrapper.plan(indptr, indices, lastPageLen, 8, 2, 64, pageSize, { posEncodingMode, logitsSoftCap, ...rope });
        expectClose(taken(test, await wrapper.run(q, all[layout], { returnLse: true })), want);
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
      const { pair } = caches(test, given);
      expectClose(
        { ...taken(test, await wrapper.run(q, pair)), lse: new Float32Array() },
        { ...reference(given, {}), lse: new Float32Array() },
      );
      expectClose(
        taken(test, await wrapper.run(q, pair, { windowLeft: 6, returnLse: true })),
        reference(given, { slidingWindow: 7 }),
      );
      const scaled = { qScale: 0.5, kScale: 3, vScale: 2, sinks: test.f32([4], sinks), returnLse: true };
      expectClose(
        taken(test, await wrapper.run(q, pair, scaled)),
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
    const result = await wrapper.run(test.f32([9, 4, 16], given.q), caches(test, given).NHD, { returnLse: true });
    expectClose(taken(test, result), reference(given, { slidingWindow: 5, smScale: 0.5 }));
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
      const { out, lse } = taken(test, await wrapper.run(q, kv, { returnLse: true }));
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
