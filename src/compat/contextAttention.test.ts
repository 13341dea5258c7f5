import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type PaluCase, paluCase, paluOnReference, paluSpec, stored } from "../../test/fixtures/attention/palu.ts";
import { type Lengths, largestError } from "../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../test/ops/testDevice.ts";
import type { PaluSpec } from "../attention/index.ts";
import { type ElementStorage, encodeRows } from "../ops/attention/index.ts";
import { type ContextAttentionArgs, contextAttentionFwd } from "./contextAttention.ts";

/** Context and new tokens of each sequence: a prefix with a page of its own, none at all, one that ends with a page, one new token. */
const lengths: readonly Lengths[] = [
  { queryLen: 12, kvLen: 45 },
  { queryLen: 9, kvLen: 9 },
  { queryLen: 17, kvLen: 33 },
  { queryLen: 1, kvLen: 60 },
];

function prefillCase(changes: Partial<PaluSpec> = {}, of: readonly Lengths[] = lengths): PaluCase {
  const spec = paluSpec({ headDim: 64, maxRankK: 12, maxRankV: 10, pageSize: 16, numQHeads: 8, ...changes });
  const perHead = (rank: number): number[] => Array.from({ length: spec.numKvHeads }, () => rank);
  return paluCase(spec, { ranksK: perHead(spec.maxRankK), ranksV: perHead(spec.maxRankV) }, of);
}

interface Split {
  readonly given: PaluCase;
  /** [new tokens, latents] */
  readonly k: Float32Array;
  readonly v: Float32Array;
  /** The latents of the contexts alone: NaN where the new tokens would be. */
  readonly kContext: Float32Array;
  readonly vContext: Float32Array;
}

/** Takes the new tokens out of the pages of a case. */
function split(given: PaluCase): Split {
  const { batch, layout, spec } = given;
  const { pageSize = 1 } = spec;
  const take = (latents: Float32Array, row: number) => {
    const context = latents.slice();
    const fresh = new Float32Array(batch.numRows * row);
    for (let s = 0; s < batch.numSeqs; s++) {
      const first = batch.queryIndptr[s];
      const queryLen = batch.queryIndptr[s + 1] - first;
      for (let i = 0; i < queryLen; i++) {
        const t = batch.kvLens[s] - queryLen + i;
        const slot = batch.blockTables[s * batch.maxPages + Math.floor(t / pageSize)] * pageSize + (t % pageSize);
        fresh.set(latents.subarray(slot * row, (slot + 1) * row), (first + i) * row);
        context.fill(Number.NaN, slot * row, (slot + 1) * row);
      }
    }
    return { fresh, context };
  };
  const [k, v] = [take(given.kLatents, layout.keyRanks), take(given.vLatents, layout.valueRanks)];
  return { given, k: k.fresh, v: v.fresh, kContext: k.context, vContext: v.context };
}

function argsOn(test: TestDevice, { given, k, v, kContext, vContext }: Split): ContextAttentionArgs {
  const { spec, batch, layout } = given;
  const { numQHeads, numKvHeads, headDim, maxRankK, maxRankV, pageSize = 1, storage } = spec;
  const cache = (latents: Float32Array, rank: number) => {
    const { units } = encodeRows(storage, latents, rank);
    const shape = [batch.numPages, pageSize, numKvHeads, rank];
    if (units instanceof Float32Array) return test.f32(shape, units);
    if (units instanceof Int8Array) throw new Error("no cache of vLLM's has scales of rows");
    return test.bytes(shape, storage as ElementStorage, units);
  };
  const { numSeqs, numRows, queryIndptr, kvLens } = batch;
  const queryLens = Array.from({ length: numSeqs }, (_, s) => queryIndptr[s + 1] - queryIndptr[s]);
  return {
    q: test.f32([numRows, numQHeads, headDim], given.q),
    k: test.f32([numRows, numKvHeads, maxRankK], k),
    v: test.f32([numRows, numKvHeads, maxRankV], v),
    o: test.f32([numRows, numQHeads, maxRankV], new Float32Array(numRows * layout.outRow).fill(77)),
    keyCache: cache(kContext, maxRankK),
    valueCache: cache(vContext, maxRankV),
    paluKUpProj: test.f32([numKvHeads, maxRankK, headDim], given.upK),
    kvCacheDtype: storage === "f8e4m3" ? "fp8_e4m3" : storage === "f8e5m2" ? "fp8_e5m2" : "auto",
    bLoc: { values: batch.blockTables, shape: [numSeqs, batch.maxPages] },
    bStartLoc: queryIndptr,
    bSeqLen: Int32Array.from(kvLens),
    bCtxLen: kvLens.map((kvLen, s) => kvLen - queryLens[s]),
    maxInputLen: Math.max(...queryLens),
    slidingWindow: spec.slidingWindow,
    alibiSlopes: given.alibiSlopes && test.f32([numQHeads], given.alibiSlopes),
    rope: spec.rope,
    ropeTable: given.ropeTable && test.f32([given.ropeTable.length / headDim, headDim], given.ropeTable),
  };
}

describe.each(Object.entries(testDevices))("context attention over latents on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  async function expectEqualsReference(given: PaluCase, changes: Partial<ContextAttentionArgs> = {}): Promise<void> {
    const parts = split(given);
    const args = argsOn(test, parts);
    await contextAttentionFwd(test.device, { ...args, ...changes });
    expect(largestError(test.readF32(args.o), paluOnReference(given).out)).toBeLessThan(5e-6);
  }

  it.each<Partial<PaluSpec>>([
    {},
    { rope: undefined },
    { alibi: true, rope: undefined },
    { slidingWindow: 1 },
    { slidingWindow: 16 },
    { slidingWindow: 64 },
    { slidingWindow: 16, alibi: true },
    { numQHeads: 2 },
    { numQHeads: 64, numKvHeads: 1 },
    { numQHeads: 64, numKvHeads: 8, headDim: 128, maxRankK: 32, maxRankV: 16 },
    { numQHeads: 64, numKvHeads: 64, headDim: 24, maxRankK: 6, maxRankV: 3 },
    { headDim: 24, maxRankK: 6, maxRankV: 3 },
    { headDim: 96, maxRankK: 24, maxRankV: 30, pageSize: 8 },
    { headDim: 128, maxRankK: 32, maxRankV: 16, pageSize: 32 },
  ])("equals attention over context and new tokens for %o", (changes) => expectEqualsReference(prefillCase(changes)));

  it.each([128, 256, 512, 2048])("sees the last %i keys across the end of a longer context", (slidingWindow) =>
    expectEqualsReference(
      prefillCase({ slidingWindow, numQHeads: 2 }, [
        { queryLen: 40, kvLen: 400 },
        { queryLen: 1, kvLen: slidingWindow + 12 },
      ]),
    ),
  );

  it("gives a token the same output however much of what is before it was cached", async () => {
    const whole = prefillCase({ numQHeads: 2 }, [{ queryLen: 50, kvLen: 50 }]);
    const want = paluOnReference(whole).out;
    const rowLength = whole.layout.outRow;
    for (const context of [1, 15, 16, 17, 33, 49]) {
      const queryLen = 50 - context;
      const rows = (values: Float32Array) => values.slice((values.length / 50) * context);
      const batch = { ...whole.batch, numRows: queryLen, queryIndptr: Int32Array.of(0, queryLen) };
      const args = argsOn(test, split({ ...whole, batch, q: rows(whole.q) }));
      await contextAttentionFwd(test.device, args);
      expect(largestError(test.readF32(args.o), want.subarray(context * rowLength))).toBeLessThan(5e-6);
    }
  });

  it("reads a window of 0 as none", () => expectEqualsReference(prefillCase(), { slidingWindow: 0 }));

  it.each(["f16", "bf16"] as const)("keeps new tokens as they are beside a context of %s", async (storage) => {
    const given = prefillCase({ storage });
    const parts = split(given);
    const args = argsOn(test, parts);
    await contextAttentionFwd(test.device, args);
    // In the reference all latents lie in f32 pages: the context rounded, the new tokens not.
    const mixed = (context: Float32Array, all: Float32Array, ranks: readonly number[]): Float32Array =>
      stored(storage, ranks, context).map((value, i) => (Number.isNaN(context[i]) ? all[i] : value));
    const want = paluOnReference({
      ...given,
      spec: { ...given.spec, storage: "f32" },
      kLatents: mixed(parts.kContext, given.kLatents, given.ranks.ranksK),
      vLatents: mixed(parts.vContext, given.vLatents, given.ranks.ranksV),
    });
    expect(largestError(test.readF32(args.o), want.out)).toBeLessThan(5e-6);
  });

  it.each(["f8e4m3", "f8e5m2"] as const)("scales a context of %s and not the new tokens", async (storage) => {
    const [kScale, vScale] = [0.25, 1.5];
    const given = prefillCase({ storage });
    const parts = split(given);
    const args = argsOn(test, parts);
    await contextAttentionFwd(test.device, { ...args, kScale, vScale });
    const mixed = (context: Float32Array, all: Float32Array, ranks: readonly number[], scale: number): Float32Array =>
      stored(storage, ranks, context).map((value, i) => (Number.isNaN(context[i]) ? all[i] : value * scale));
    const want = paluOnReference({
      ...given,
      spec: { ...given.spec, storage: "f32" },
      kLatents: mixed(parts.kContext, given.kLatents, given.ranks.ranksK, kScale),
      vLatents: mixed(parts.vContext, given.vLatents, given.ranks.ranksV, vScale),
    });
    expect(largestError(test.readF32(args.o), want.out)).toBeLessThan(5e-6);
  });

  it("takes the starts without the end, and sequences without new tokens", async () => {
    const given = prefillCase({}, [...lengths.slice(0, 2), { queryLen: 0, kvLen: 20 }, ...lengths.slice(2)]);
    await expectEqualsReference(given, { bStartLoc: given.batch.queryIndptr.slice(0, 5) });
  });

  it("gives back all memory it took", async () => {
    const args = argsOn(test, split(prefillCase()));
    const used = test.device.stats().usedBytes;
    await contextAttentionFwd(test.device, args);
    await expect(contextAttentionFwd(test.device, { ...args, ropeTable: undefined })).rejects.toThrow("ropeTable");
    expect(test.device.stats().usedBytes).toBe(used);
  });

  it("names what is wrong", async () => {
    const args = argsOn(test, split(prefillCase()));
    const run = (changes: Partial<ContextAttentionArgs>) => contextAttentionFwd(test.device, { ...args, ...changes });
    await expect(run({ maxInputLen: 16 })).rejects.toThrow(
      "maxInputLen = 16 must be at least the 17 new tokens of sequence 2",
    );
    await expect(run({ bCtxLen: Int32Array.of(46, 0, 16, 59) })).rejects.toThrow(
      "bCtxLen[0] = 46 must be from 0 to bSeqLen[0] = 45",
    );
    await expect(run({ bStartLoc: Int32Array.of(0, 13, 21, 38) })).rejects.toThrow("bStartLoc[1] = 13 must be 12");
    await expect(run({ bStartLoc: Int32Array.of(0, 12) })).rejects.toThrow("bStartLoc.length = 2 must be 4 or 5");
    await expect(run({ k: { ...args.k, shape: [39, 2, 64] } })).rejects.toThrow(
      "k.shape = [39, 2, 64] must be [39, 2, 12]",
    );
    await expect(run({ v: { ...args.v, type: "f16" } })).rejects.toThrow("v.type = f16 must be f32");
    await expect(run({ o: { ...args.o, shape: [39, 8, 64] } })).rejects.toThrow(
      "o.shape = [39, 8, 64] must be [39, 8, 10]",
    );
    await expect(run({ slidingWindow: -1 })).rejects.toThrow("slidingWindow = -1 must be a whole number, 0 for none");
    await expect(run({ bSeqLen: Int32Array.of(45, 9, 33) })).rejects.toThrow("bCtxLen.length = 4 must be 3");
    const { values, shape } = args.bLoc;
    const fewer = { values: values.subarray(shape[1]), shape: [3, shape[1]] as const };
    await expect(run({ bLoc: fewer })).rejects.toThrow("bLoc.shape[0] = 3 must be the 4 sequences of bSeqLen");
    const rows = (tensor: ContextAttentionArgs["q"]) => ({ ...tensor, shape: [38, ...tensor.shape.slice(1)] });
    const short = { q: rows(args.q), k: rows(args.k), v: rows(args.v), o: rows(args.o) };
    await expect(run(short)).rejects.toThrow("q must have at least the 39 new tokens of all sequences, got 38");
    await expect(run({ q: { ...args.q, shape: [38, 8, 64] } })).rejects.toThrow(
      "k.shape = [39, 2, 12] must be [38, 2, 12]",
    );
  });
});
