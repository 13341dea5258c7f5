/** What the specs of masks, latents and storages, the tables of a batch, and the arguments of a call refuse. Plain heads are contract.test.ts's. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultSpec, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { CpuDevice } from "../../devices/index.ts";
import { type AttentionBatch, validateAttentionBatch } from "./batch.ts";
import { type AttentionSpec, validateAttentionSpec } from "./contract.ts";
import {
  type AttentionInputs,
  attentionReference,
  CpuAttentionPlan,
  latentLayout,
  nhdStrides,
  type ReferenceSpec,
  recordAttention,
} from "./index.ts";
import type { PageStorage } from "./storage.ts";

const rebuilt = { maxRankK: 4, keys: "rebuilt" } as const;
const absorbed = { maxRankK: 4, keys: "absorbed" } as const;

it.each<[Partial<AttentionSpec>, string]>([
  [{ headDimV: 0 }, "headDimV must be an integer from 1 to 1024, got 0"],
  [{ customMask: true }, "customMask needs causal = false: the mask alone says what is visible"],
  [{ maskValue: 1 }, "maskValue must be a finite number of at most 0, got 1"],
  [{ maskValue: -Infinity }, "maskValue must be a finite number of at most 0, got -Infinity"],
  [{ maskValue: Number.NaN }, "maskValue must be a finite number of at most 0, got NaN"],
  [{ maskValue: -1, causal: false }, "maskValue = -1 needs causal = true: without it nothing is masked"],
  [{ mla: { ropeDim: -1 } }, "mla.ropeDim must be an integer from 0 to 1024, got -1"],
  [{ mla: { ropeDim: 4 } }, "numKvHeads must be 1 with mla, got 2"],
  [{ mla: { ropeDim: 4 }, latent: rebuilt }, "mla and latent have no meaning together: each says what a page holds"],
  [{ mla: { ropeDim: 4 }, numKvHeads: 1, headDimV: 10 }, "headDim must be headDimV + mla.ropeDim = 10 + 4, got 16"],
  [{ latent: rebuilt }, "headDimV must be given with latent: the largest rank of the values"],
  [{ latent: { ...rebuilt, maxRankK: 0 }, headDimV: 4 }, "latent.maxRankK must be an integer from 1 to 1024, got 0"],
  [
    { latent: { ...absorbed, bias: true }, headDimV: 4 },
    "latent.bias needs latent.keys = rebuilt: a query cannot absorb it",
  ],
  [
    { latent: absorbed, headDimV: 4, rope: { style: "halves", dim: 4 } },
    "rope needs latent.keys = rebuilt: a rotation lies between U_k and the query",
  ],
  [{ latent: absorbed, headDimV: 4 }, "headDim must be latent.maxRankK = 4 with absorbed keys, got 16"],
  [{ rope: { style: "halves", dim: 3 } }, "rope.dim must be even, got 3"],
  [
    { rope: { style: "halves", dim: 8, offset: 10 } },
    "rope.offset + rope.dim must be at most headDim = 16, got 10 + 8",
  ],
  [{ storage: "f64" as "f32" }, "storage must be one of f32, f16, bf16, f8e4m3, f8e5m2, i8 or an object, got f64"],
  [{ storage: { kind: "tiled", tile: 12 } }, "storage.tile must be a positive multiple of 8, got 12"],
  [{ valueStorage: { kind: "grouped", bits: 5 as 4, groupSize: 8 } }, "valueStorage.bits must be 2, 3, 4 or 8, got 5"],
  [
    { storage: { kind: "grouped", bits: 4, groupSize: 12 } },
    "storage.groupSize must be a multiple of 8, or 0 for the whole row, got 12",
  ],
])("a spec with %j", (changes, message) => {
  expect(() => validateAttentionSpec({ ...defaultSpec(), ...changes })).toThrow(message);
});

describe("a batch", () => {
  const good: AttentionBatch = {
    ...{ numRows: 4, numSeqs: 2, maxPages: 3, numPages: 5 },
    queryIndptr: Int32Array.of(0, 3, 4),
    kvLens: Int32Array.of(5, 9),
    blockTables: Int32Array.of(2, 0, 2147480000, 1, 3, 4),
  };
  const mask = { bits: new Uint8Array(3), indptr: Int32Array.of(0, 2) };
  const recent = {
    ...{ capacity: 4, numWindows: 2 },
    starts: Int32Array.of(1, 8),
    windows: Int32Array.of(1, 0),
  };
  const withRecent = (changes: object) => ({ recent: { ...recent, ...changes } });

  it.each<[Partial<AttentionSpec>, Partial<AttentionBatch>, string]>([
    [
      { pageSize: undefined },
      { blockTables: Int32Array.of(0, 2), maxPages: 1, numPages: 10 },
      "blockTables[1] = 2 and kvLens[1] = 9 reach past the 10 rows of keys",
    ],
    [
      { pageSize: undefined },
      { blockTables: Int32Array.of(-1, 1), maxPages: 1, numPages: 10 },
      "blockTables[0] = -1 and kvLens[0] = 5 reach past the 10 rows of keys",
    ],
    [{}, { pageIndptr: Int32Array.of(0, 2) }, "pageIndptr must have at least numSeqs + 1 = 3 entries, got 2"],
    [
      {},
      { pageIndptr: Int32Array.of(0, 2, 7) },
      "pageIndptr must not fall nor exceed the 6 page ids, got 2 then 7 for sequence 1",
    ],
    [
      {},
      { pageIndptr: Int32Array.of(0, 2, 1) },
      "pageIndptr must not fall nor exceed the 6 page ids, got 2 then 1 for sequence 1",
    ],
    [
      {},
      { pageIndptr: Int32Array.of(0, 2, 4) },
      "kvLens[1] = 9 needs 3 pages of 4 tokens, but blockTables has 2 for it",
    ],
    [{}, { positionOffsets: Int32Array.of(1) }, "positionOffsets must have at least numSeqs = 2 entries, got 1"],
    [{ causal: false, customMask: true }, {}, "customMask must be given because the spec has customMask"],
    [
      { causal: false, customMask: true },
      { customMask: { ...mask, indptr: Int32Array.of(0) } },
      "customMask.indptr must have at least numSeqs = 2 entries, got 1",
    ],
    [
      { causal: false, customMask: true },
      { customMask: mask },
      "customMask.indptr[1] = 2 and 2 bytes for sequence 1 reach past the 3 bytes of the mask",
    ],
    [{ latent: { ...rebuilt, recent: "f32" } }, {}, "recent must be given because the spec has latent.recent"],
    [{ latent: { ...rebuilt, recent: "f32" } }, withRecent({ capacity: 0 }), "recent.capacity must be an integer"],
    [
      { latent: { ...rebuilt, recent: "f32" } },
      withRecent({ starts: Int32Array.of(0, 8) }),
      "recent.starts[0] = 0 must leave 0 to 4 of the 5 tokens of the sequence",
    ],
    [
      { latent: { ...rebuilt, recent: "f32" } },
      withRecent({ starts: Int32Array.of(1, 10) }),
      "recent.starts[1] = 10 must leave 0 to 4 of the 9 tokens of the sequence",
    ],
    [
      { latent: { ...rebuilt, recent: "f32" } },
      withRecent({ windows: Int32Array.of(2, 0) }),
      "recent.windows[0] = 2 is not a window: there are 2",
    ],
  ])("of %j with %j", (spec, changes, message) => {
    expect(() => validateAttentionBatch({ pageSize: 4, ...spec }, { ...good, ...changes })).toThrow(message);
  });

  it("takes the same with nothing wrong", () => {
    const latent = { ...rebuilt, recent: "f32" } as const;
    const bits = new Uint8Array(4);
    expect(() => validateAttentionBatch({ pageSize: 4, latent }, { ...good, recent })).not.toThrow();
    const masked = { ...good, customMask: { ...mask, bits } };
    expect(() => validateAttentionBatch({ pageSize: 4, customMask: true }, masked)).not.toThrow();
  });
});

it.each([
  [{ ranksK: [4, 4], ranksV: [4] }, "ranksV must have an entry for each of the 2 groups of ranksK, got 1"],
  [{ ranksK: [4, 4, 4], ranksV: [4, 4, 4] }, "ranksK must have a number of groups that divides numKvHeads = 2, got 3"],
  [{ ranksK: [], ranksV: [] }, "ranksK must have a number of groups that divides numKvHeads = 2, got 0"],
  [{ ranksK: [4, 0], ranksV: [4, 4] }, "ranksK[1] must be an integer of at least 1, got 0"],
  [{ ranksK: [4], ranksV: [1.5] }, "ranksV[0] must be an integer of at least 1, got 1.5"],
])("ranks of %j", (ranks, message) => {
  const storage: PageStorage = "f32";
  expect(() => latentLayout(ranks, { numQHeads: 4, numKvHeads: 2, headDim: 8, storage })).toThrow(message);
});

describe("a call", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 1 });
  });
  afterAll(() => device.close());

  it.each<[Partial<AttentionSpec>, object, string]>([
    [{}, { lse: undefined }, "lse must be given because the spec has returnLse"],
    [{}, { qRowStride: 63 }, "qRowStride must be an integer of at least a row's 64 elements, got 63"],
    [{}, { outRowStride: 1.5 }, "outRowStride must be an integer of at least a row's 64 elements, got 1.5"],
    [{ alibi: true }, {}, "alibiSlopes must be given because the spec has alibi"],
    [{ sinks: true }, {}, "sinks must be given because the spec has sinks"],
    [{ rope: { style: "halves", dim: 8 } }, {}, "ropeTable must be given because the spec has rope"],
    [{ storage: "i8" }, {}, 'kScales must be given because the spec has storage "i8"'],
    [{ valueStorage: "i8" }, {}, 'vScales must be given because the spec has storage "i8"'],
    [{ latent: rebuilt, headDimV: 4 }, {}, "outRowStride must be given because the spec has latent"],
  ])("under a spec with %j, of %j", (changes, args, message) => {
    const spec = defaultSpec(changes);
    const plan = new CpuAttentionPlan(device, spec);
    expect(() => plan.plan.batch).toThrow("AttentionPlan.update was never called");
    plan.update(raggedCase(defaultSpec(), [{ queryLen: 1, kvLen: 5 }]).batch);
    const commands = device.commands();
    const pointers = { q: 1024, kPages: 1024, vPages: 1024, out: 1024, lse: 1024 };
    expect(() => recordAttention({ device, commands }, plan, { ...pointers, ...args })).toThrow(message);
    commands.free();
    plan.release();
  });
});

it.each([
  [{ up: undefined }, "latent.up must be given: the keys are rebuilt"],
  [{ bias: undefined }, "latent.bias must be given because the spec has latent.bias"],
  [{ recentV: undefined }, "latent.recentK and recentV must be given because of latent.recent"],
])("the reference without %j", (missing, message) => {
  const spec: ReferenceSpec = {
    ...{ headDim: 2, headDimV: 1, numQHeads: 1, numKvHeads: 1, pageSize: 1, causal: false, smScale: 1 },
    latent: { maxRankK: 1, keys: "rebuilt", bias: true, recent: "f32" },
  };
  const batch: AttentionBatch = {
    ...{ numRows: 1, numSeqs: 1, queryIndptr: Int32Array.of(0, 1), kvLens: Int32Array.of(2) },
    ...{ blockTables: Int32Array.of(0, 0), maxPages: 2, numPages: 1 },
    recent: { capacity: 1, numWindows: 1, starts: Int32Array.of(1), windows: Int32Array.of(0) },
  };
  const strides = nhdStrides({ numKvHeads: 1, headDim: 1 });
  const latent = { ranksK: [1], ranksV: [1], up: [1, 1], bias: [0, 0], recentK: [1], recentV: [1] };
  const inputs: AttentionInputs = { q: [1, 1], kPages: [1], vPages: [1], kStrides: strides, vStrides: strides, latent };
  expect(() => attentionReference(spec, batch, inputs)).not.toThrow();
  expect(() => attentionReference(spec, batch, { ...inputs, latent: { ...latent, ...missing } })).toThrow(message);
});
