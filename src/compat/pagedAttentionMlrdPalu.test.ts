import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type PaluCase, paluCase, paluOnReference, paluSpec, stored } from "../../test/fixtures/attention/palu.ts";
import { bits, largestError } from "../../test/fixtures/attention/ragged.ts";
import { normals, type TestDevice, testDevices } from "../../test/ops/testDevice.ts";
import { packVisible } from "../attention/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import { encodeRows } from "../ops/attention/index.ts";
import {
  forwardDecodeMlrdPalu,
  type PagedAttentionMlrdPaluArgs,
  pagedAttentionMlrdPaluV1,
  pagedAttentionMlrdPaluV2,
  usesPagedAttentionV1,
} from "./pagedAttentionMlrdPalu.ts";

interface Sizes {
  readonly headDim: number;
  readonly rankK: number;
  readonly rankV: number;
  readonly pageSize?: number;
  readonly storage?: ElementStorage;
  readonly numQHeads?: number;
  readonly numKvHeads?: number;
  readonly alibi?: boolean;
  readonly rope?: boolean;
  readonly lens?: readonly number[];
}

function decodeCase({ headDim, rankK, rankV, lens = [33, 1, 97, 60], ...sizes }: Sizes): PaluCase {
  const { numQHeads = 4, numKvHeads = 2, storage = "f32", pageSize = 32, alibi = false, rope = false } = sizes;
  const spec = paluSpec({
    headDim,
    numQHeads,
    numKvHeads,
    maxRankK: rankK,
    maxRankV: rankV,
    pageSize,
    storage,
    alibi,
    splitSize: 512,
    rope: rope ? { style: "halves", dim: headDim } : undefined,
  });
  const perHead = (rank: number): number[] => Array.from({ length: numKvHeads }, () => rank);
  const ranks = { ranksK: perHead(rankK), ranksV: perHead(rankV) };
  return paluCase(
    spec,
    ranks,
    lens.map((kvLen) => ({ queryLen: Math.min(1, kvLen), kvLen })),
  );
}

/** The tensors of a case on a device, as arguments; `out` is followed by canaries. */
function argsOn(test: TestDevice, given: PaluCase): PagedAttentionMlrdPaluArgs {
  const { spec, batch, layout } = given;
  const { numQHeads, numKvHeads, headDim, maxRankK, maxRankV, pageSize = 1, storage } = spec;
  const cache = (latents: Float32Array, row: number) => {
    const { units } = encodeRows(storage, latents, row);
    const shape = [batch.numPages, pageSize, numKvHeads, row / numKvHeads];
    if (units instanceof Float32Array) return test.f32(shape, units);
    if (units instanceof Int8Array) throw new Error("no cache of vLLM's has scales of rows");
    return test.bytes(shape, storage as ElementStorage, units);
  };
  const numSeqs = batch.numSeqs;
  return {
    out: {
      ...test.f32([1], new Float32Array(numSeqs * layout.outRow + 64).fill(77)),
      shape: [numSeqs, numQHeads, maxRankV],
    },
    query: test.f32([numSeqs, numQHeads, headDim], given.q),
    keyCache: cache(given.kLatents, layout.keyRanks),
    valueCache: cache(given.vLatents, layout.valueRanks),
    paluKUpProj: test.f32([numKvHeads, maxRankK, headDim], given.upK),
    numKvHeads,
    scale: spec.smScale,
    blockTables: { values: batch.blockTables, shape: [numSeqs, batch.maxPages] },
    seqLens: Int32Array.from(batch.kvLens),
    blockSize: pageSize,
    maxSeqLen: batch.kvLens.reduce((a, b) => Math.max(a, b), 0),
    kvCacheDtype: storage === "f8e4m3" ? "fp8" : storage === "f8e5m2" ? "fp8_e5m2" : "auto",
    alibiSlopes: given.alibiSlopes && test.f32([numQHeads], given.alibiSlopes),
    rope: spec.rope,
    ropeTable: given.ropeTable && test.f32([given.ropeTable.length / headDim, headDim], given.ropeTable),
  };
}

describe.each(Object.entries(testDevices))("Palu decoding by vLLM's names on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  async function expectEqualsReference(
    given: PaluCase,
    changes: Partial<PagedAttentionMlrdPaluArgs> = {},
  ): Promise<void> {
    const want = paluOnReference({ ...given, kScale: changes.kScale, vScale: changes.vScale });
    for (const version of [pagedAttentionMlrdPaluV1, pagedAttentionMlrdPaluV2]) {
      const args = argsOn(test, given);
      await version(test.device, { ...args, ...changes });
      const got = test.readF32(args.out);
      expect(largestError(got.subarray(0, want.out.length), want.out)).toBeLessThan(5e-6);
      // Bug 4 of the original reduces with the width of a head and writes past the latents.
      expect(got.subarray(want.out.length, want.out.length + 64).every((value) => value === 77)).toBe(true);
    }
  }

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
  ])(
    "heads of %i with latents of %i, also those that 16 bytes do not divide, in f32 and f16",
    async (headDim, rank) => {
      await expectEqualsReference(decodeCase({ headDim, rankK: rank, rankV: rank, lens: [33, 1, 40] }));
      await expectEqualsReference(decodeCase({ headDim, rankK: rank, rankV: rank, lens: [33, 1, 40], storage: "f16" }));
    },
  );

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)(
    "a cache of %s is multiplied as numbers and summed in f32",
    async (storage) => {
      // Bug 1: raw bit patterns of f16 as integers, sums in the cache's type.
      const given = decodeCase({ headDim: 64, rankK: 16, rankV: 16, storage });
      await expectEqualsReference(given, storage.startsWith("f8") ? { kScale: 0.5, vScale: 1.5 } : {});
    },
  );

  it("ranks of keys and values that differ", () =>
    // Bug 6: both strides from the key cache.
    expectEqualsReference(decodeCase({ headDim: 64, rankK: 8, rankV: 24, storage: "f16" })));

  it.each([8, 16, 32])("blocks of %i tokens, with rotated keys and ALiBi", async (pageSize) => {
    await expectEqualsReference(decodeCase({ headDim: 64, rankK: 16, rankV: 12, pageSize, rope: true }));
    await expectEqualsReference(decodeCase({ headDim: 64, rankK: 16, rankV: 12, pageSize, alibi: true }));
  });

  it.each([
    [16, 8, 128, 16],
    [64, 8, 128, 32],
    [40, 40, 128, 16],
  ])("%i query heads on %i key/value heads of %i, the original's own sizes", (numQHeads, numKvHeads, headDim, rank) =>
    expectEqualsReference(
      decodeCase({ headDim, rankK: rank, rankV: rank, numQHeads, numKvHeads, lens: [4, 16], storage: "f16" }),
    ),
  );

  it("f32 of 256 channels in 64: more than the original's shared memory takes", () =>
    // Bug 8, with its small rank: 16 of 128 in f32.
    expectEqualsReference(decodeCase({ headDim: 256, rankK: 64, rankV: 64, lens: [40] })));

  it("long sequences, in the same bits by either version", async () => {
    const given = decodeCase({ headDim: 64, rankK: 8, rankV: 12, lens: [1300, 512, 513, 3], rope: true });
    await expectEqualsReference(given);
    const [one, two] = [argsOn(test, given), argsOn(test, given)];
    await pagedAttentionMlrdPaluV1(test.device, one);
    await pagedAttentionMlrdPaluV2(test.device, two);
    expect(bits(test.readF32(two.out))).toEqual(bits(test.readF32(one.out)));
  });

  it.each([
    [1, 4, 64],
    [3, 0, 32],
    [0, 3, 32],
    [2, 8, 128],
  ])(
    "block-sparse with %i local blocks and a stride of %i blocks of %i",
    async (localBlocks, vertStride, blockSize) => {
      const given = decodeCase({ headDim: 64, rankK: 8, rankV: 12, lens: [300, 64, 65, 31] });
      const { kvLens } = given.batch;
      const isSparse = vertStride > 1;
      // The original's conditions, as its kernel states them for one head and an offset of 1.
      const customMask = packVisible({ qLens: kvLens.map(() => 1), kvLens }, (s, _query, t) => {
        const [block, queryBlock] = [Math.floor(t / blockSize), Math.floor((kvLens[s] - 1) / blockSize)];
        return !isSparse || (block + 1) % vertStride === 0 || block > queryBlock - localBlocks;
      });
      const masked = {
        ...given,
        spec: { ...given.spec, causal: false, customMask: true },
        batch: { ...given.batch, customMask },
      };
      const want = paluOnReference(masked);
      const args = argsOn(test, given);
      const pattern = { localBlocks, vertStride, blockSize };
      await pagedAttentionMlrdPaluV2(test.device, { ...args, blocksparse: pattern, tpRank: 1 });
      expect(largestError(test.readF32(args.out).subarray(0, want.out.length), want.out)).toBeLessThan(5e-6);
    },
  );

  it("a sequence without tokens becomes zeros", async () => {
    const args = argsOn(test, decodeCase({ headDim: 64, rankK: 8, rankV: 8, lens: [5, 7] }));
    await pagedAttentionMlrdPaluV1(test.device, { ...args, seqLens: Int32Array.of(0, 7) });
    const got = test.readF32(args.out);
    expect(got.subarray(0, 32).every((value) => value === 0)).toBe(true);
    expect(got.subarray(32, 64).every((value) => value !== 0)).toBe(true);
  });

  it("forwardDecode allocates latents, not heads", async () => {
    // Bug 5: the original's output is as wide as a head.
    const given = decodeCase({ headDim: 64, rankK: 8, rankV: 12, lens: [600, 9] });
    const { out: _out, ...args } = argsOn(test, given);
    const used = test.device.stats().usedBytes;
    const out = await forwardDecodeMlrdPalu(test.device, args);
    expect(out.shape).toEqual([2, 4, 12]);
    const want = paluOnReference(given).out;
    if (!out.buffer) throw new Error("out was not allocated");
    expect(largestError(test.device.f32(out.buffer).slice(0, want.length), want)).toBeLessThan(5e-6);
    test.device.free(out.buffer);
    await expect(forwardDecodeMlrdPalu(test.device, { ...args, blockSize: 16 })).rejects.toThrow("blockSize = 16");
    expect(test.device.stats().usedBytes).toBe(used);
  });

  it("names what is wrong before anything runs", async () => {
    const args = argsOn(test, decodeCase({ headDim: 64, rankK: 8, rankV: 12, lens: [5, 7] }));
    const { numPages } = decodeCase({ headDim: 64, rankK: 8, rankV: 12, lens: [5, 7] }).batch;
    const run = (changes: Partial<PagedAttentionMlrdPaluArgs>) =>
      pagedAttentionMlrdPaluV1(test.device, { ...args, ...changes });
    const shaped = (tensor: PagedAttentionMlrdPaluArgs["out"], ...shape: number[]) => ({ ...tensor, shape });
    // Bugs 2 and 3: an output of another type or width than what is written.
    await expect(run({ out: { ...args.out, type: "f16" } })).rejects.toThrow("out.type = f16 must be f32");
    await expect(run({ out: shaped(args.out, 2, 4, 64) })).rejects.toThrow(
      "out.shape = [2, 4, 64] must be [numSeqs, numQHeads, rankV] = [2, 4, 12]: outputs are latents",
    );
    // Bug 7: vLLM's layout truncates ranks that 16 bytes do not divide.
    await expect(run({ keyCache: shaped(args.keyCache, numPages, 2, 2, 32, 4) })).rejects.toThrow(
      "is vLLM's x-packed layout: convert it with keyPagesFromVllm",
    );
    await expect(run({ valueCache: shaped(args.valueCache, numPages, 2, 12, 32) })).rejects.toThrow(
      "vLLM's layout: see valuePagesFromVllm",
    );
    // Bug 9: the block size is checked where it is given.
    await expect(run({ blockSize: 16 })).rejects.toThrow("blockSize = 16 must be the 32 of keyCache");
    await expect(run({ paluKUpProj: shaped(args.paluKUpProj, 2, 64, 8) })).rejects.toThrow(
      "paluKUpProj.shape = [2, 64, 8] must be [numKvHeads, rankK, headSize] = [2, 8, 64]",
    );
    await expect(run({ paluKUpProj: { ...args.paluKUpProj, type: "f16" } })).rejects.toThrow("paluKUpProj.type = f16");
    await expect(run({ numKvHeads: 4 })).rejects.toThrow("numKvHeads = 4 must be the 2 of keyCache");
    await expect(run({ maxSeqLen: 6 })).rejects.toThrow("seqLens[1] = 7 must be at most maxSeqLen = 6");
    await expect(run({ seqLens: Int32Array.of(5) })).rejects.toThrow("seqLens.length = 1 must be 2");
    await expect(run({ seqLens: Int32Array.of(5, -1) })).rejects.toThrow("kvLens[1] must not be negative");
    const noPage = { values: Int32Array.of(0, numPages), shape: [2, 1] as const };
    await expect(run({ blockTables: noPage })).rejects.toThrow(
      `blockTables[1][0] = ${numPages} is not a page: the pool has ${numPages}`,
    );
    await expect(run({ blockTables: { values: new Int32Array(3), shape: [3, 1] } })).rejects.toThrow(
      "blockTables.shape[0] = 3 must be the 2 sequences of query",
    );
    await expect(run({ kvCacheDtype: "fp8" })).rejects.toThrow("keyCache.type = f32 must be f8e4m3");
    await expect(run({ kvCacheDtype: "fp4" as "fp8" })).rejects.toThrow(
      "kvCacheDtype = fp4 must be auto, fp8, fp8_e4m3, fp8_e5m2",
    );
    const codes = {
      keyCache: { ...args.keyCache, type: "f8e4m3" },
      valueCache: { ...args.valueCache, type: "f8e4m3" },
    } as const;
    await expect(run(codes)).rejects.toThrow("kvCacheDtype = auto must be fp8_e4m3 or fp8_e5m2 for a keyCache of type");
    await expect(run({ valueCache: codes.valueCache })).rejects.toThrow(
      "valueCache.type = f8e4m3 must be that of keyCache, f32",
    );
    const { query } = args;
    await expect(run({ query: shaped(query, 2, 3, 64), out: shaped(args.out, 2, 3, 12) })).rejects.toThrow(
      "numQHeads = 3 must be divisible by the numKvHeads = 2 of keyCache",
    );
    await expect(run({ blocksparse: { localBlocks: -1, vertStride: 2 } })).rejects.toThrow(
      "blocksparse.localBlocks = -1 must be a whole number",
    );
    await expect(run({ kScale: 0 })).rejects.toThrow("kScale = 0 must be a positive number");
    await expect(run({ tpRank: -1 })).rejects.toThrow("tpRank = -1 must be a whole number");
    await expect(run({ blocksparse: { vertStride: 2, blockSize: 48 } })).rejects.toThrow(
      "blocksparse.blockSize = 48 must be a positive multiple of blockSize = 32",
    );
    await expect(run({ blocksparse: { vertStride: 2, headSlidingStep: 1 } })).rejects.toThrow(
      "blocksparse.headSlidingStep = 1 must be 0: patterns that differ between heads are not supported",
    );
    // Bug 4: the scratch of version 2 is as wide as the values' latents.
    const tmpOut = shaped(args.out, 2, 4, 1, 64);
    await expect(pagedAttentionMlrdPaluV2(test.device, { ...args, tmpOut })).rejects.toThrow(
      "tmpOut.shape = [2, 4, 1, 64] must be [2, 4, 1, 12]",
    );
    expect(test.readF32(args.out).every((value) => value === 77)).toBe(true);
  });
});

it("vLLM's choice of a version", () => {
  const choose = (maxSeqLen: number, numSeqs: number, numQHeads: number): boolean =>
    usesPagedAttentionV1({ maxSeqLen, numSeqs, numQHeads });
  expect(choose(512, 1, 1)).toBe(true);
  expect(choose(513, 1, 1)).toBe(false);
  expect(choose(513, 16, 32)).toBe(false);
  expect(choose(513, 17, 32)).toBe(true);
  expect(choose(8192, 17, 32)).toBe(true);
  expect(choose(8193, 17, 32)).toBe(false);
});

it("the cases of these tests store latents as their type rounds them", () => {
  const rows = normals(32, 1);
  expect(stored("f16", [16], rows)).not.toEqual(rows);
});
