/** Mistakes that the attention classes share: forms of tensors, other devices, calls out of order. Each class's own are in its tests. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { makeMlaCase, putMlaCase } from "../../test/fixtures/attention/mlaCase.ts";
import { paluCase, paluSpec } from "../../test/fixtures/attention/palu.ts";
import { defaultSpec, raggedCase } from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { CpuDevice } from "../devices/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { BatchAttention } from "./batchAttention.ts";
import { MultiLevelCascadeAttention } from "./cascade.ts";
import { AbsorbedMla, type AbsorbedMlaSpec, BatchMLAPagedAttention, mlaReference } from "./mla/index.ts";
import { allocateLatentCache, BatchPaluAttention, LatentWindows, PaluLayer, type PaluSpec } from "./palu/index.ts";
import { type KvShape, locateKv } from "./tensors.ts";
import { VariableBlockSparseAttention } from "./variableBlockSparse.ts";

let test: TestDevice;
let other: CpuDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 1 });
  other = await CpuDevice.create({ threads: 1 });
});
afterEach(() => test.clear());
afterAll(async () => {
  await test.close();
  await other.close();
});

const foreign = "record: the recorder belongs to another device";
const zeros = (...shape: number[]): DeviceTensor => test.f32(shape, new Float32Array(shape.reduce((a, b) => a * b, 1)));
/** A recorder of another device. */
async function elsewhere(record: (recorder: Recorder) => unknown): Promise<void> {
  const commands = other.commands();
  record({ device: other, commands });
  commands.free();
}

it("keys and values of other forms", async () => {
  const shape: KvShape = {
    ...{ layout: "NHD", pageSize: 4, numKvHeads: 2, numPages: 3 },
    ...{ k: { elements: 16, type: "f32" }, v: { elements: 8, type: "f32" } },
  };
  const kv = { pointer: 0, type: "f32", shape: [3, 2, 4, 2, 16] } as const;
  expect(() => locateKv("cache", { kv }, shape)).toThrow(
    "cache.kv needs keys and values of one size and type, got 16 of f32 and 8 of f32",
  );
  const same: KvShape = { ...shape, v: { elements: 16, type: "f16" } };
  expect(() => locateKv("cache", { combined: kv }, same)).toThrow("cache.combined needs keys and values of one size");
  const rows: KvShape = { ...shape, v: shape.k, pageSize: undefined };
  expect(() => locateKv("cache", { kv }, rows)).toThrow("cache.kv needs a pageSize: contiguous rows come as k and v");
});

it("BatchAttention refuses a recorder of another device", async () => {
  const { spec, batch } = raggedCase(defaultSpec(), [{ queryLen: 1, kvLen: 5 }]);
  const attention = new BatchAttention(test.device, spec);
  attention.plan(batch);
  const pages = zeros(batch.numPages, 4, 2, 16);
  const args = { q: zeros(1, 4, 16), cache: { k: pages, v: pages } };
  await expect(elsewhere((recorder) => attention.record(recorder, args))).rejects.toThrow(foreign);
  attention.release();
});

it("a cascade that was never planned", async () => {
  const cascade = new MultiLevelCascadeAttention(test.device, 2, defaultSpec({ returnLse: false }));
  const pages = zeros(1, 4, 2, 16);
  await expect(cascade.run({ q: zeros(1, 4, 16), cache: { k: pages, v: pages } })).rejects.toThrow(
    "plan must be called before the attention is recorded",
  );
  cascade.release();
});

it("an lse that blocks of any size were not asked for", async () => {
  const { headDim, numQHeads, numKvHeads, smScale } = defaultSpec();
  const attention = new VariableBlockSparseAttention(test.device, { headDim, numQHeads, numKvHeads, smScale });
  attention.plan({
    numBlockRows: 1,
    numBlockCols: 1,
    blockMaskMap: [1, 1],
    blockRowSizes: [2, 2],
    blockColSizes: [3, 3],
  });
  const args = { q: zeros(2, 4, 16), k: zeros(3, 2, 16), v: zeros(3, 2, 16), lse: zeros(2, 4) };
  await expect(attention.run(args)).rejects.toThrow("lse must be absent: the spec lacks returnLse");
  attention.release();
});

describe("latent attention", () => {
  const dims = { kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24 };
  const sizes = { ...dims, numHeads: 2, pageSize: 4 };

  it("refuses forms, devices and calls that are none", async () => {
    const made = makeMlaCase({ ...sizes, lengths: [[1, 9]] });
    const put = putMlaCase(test, made);
    const args = { ...put, cache: put.separate(), out: undefined, lse: undefined };
    const spec = { ...made.spec, rope: undefined };
    expect(() => new BatchMLAPagedAttention(test.device, { ...spec, form: "both" as "auto" })).toThrow(
      "form must be auto, absorbed or rebuilt, got both",
    );
    const attention = new BatchMLAPagedAttention(test.device, { ...spec, form: "rebuilt" });
    attention.plan(made.batch);
    await expect(elsewhere((recorder) => attention.record(recorder, args))).rejects.toThrow(foreign);
    await expect(attention.run({ ...args, qPe: undefined })).rejects.toThrow(
      "qPe must be given exactly if qkRopeHeadDim is not 0, which is 8",
    );
    attention.release();
    const inputs = { ckvCache: made.ckv, kpeCache: made.kpe, qPe: made.qPe };
    expect(() => mlaReference(made.spec, made.batch, inputs)).toThrow("qNope and kvBProj must be given, or qLatent");
  });

  it("refuses caches of other forms than their storage", async () => {
    const made = makeMlaCase({ ...sizes, lengths: [[1, 9]] });
    const put = putMlaCase(test, made);
    const record = (changes: object, cache: object, args: object = {}) => {
      const attention = new BatchMLAPagedAttention(test.device, { ...made.spec, rope: undefined, ...changes });
      attention.plan(made.batch);
      const given = { ...put, cache: cache as ReturnType<typeof put.separate>, ...args };
      return attention.run({ ...given, lse: undefined }).finally(() => attention.release());
    };
    const { numPages } = made.batch;
    const separate = put.separate();
    const token = test.bytes([numPages, 4, 52], "u8", new Uint8Array(numPages * 4 * 52 + 8));
    await expect(record({ storage: "fp8Token" }, separate)).rejects.toThrow(
      "cache must be { fused } for storage fp8Token",
    );
    await expect(record({ storage: "f16", ropeStorage: "bf16" }, put.fused())).rejects.toThrow(
      "cache.fused must have one type of elements, got storage f16 and ropeStorage bf16",
    );
    await expect(
      record({ qkRopeHeadDim: 0 }, { ckv: separate.ckv, kpe: separate.ckv }, { qPe: undefined }),
    ).rejects.toThrow("cache.kpe must be absent for qkRopeHeadDim = 0");
    await expect(record({ storage: "fp8Token" }, { fused: { ...token, pointer: token.pointer + 2 } })).rejects.toThrow(
      "cache.fused must have its rows at multiples of 4 bytes for their scales",
    );
    const strides = [4 * 54, 54, 1];
    await expect(record({ storage: "fp8Token" }, { fused: { ...token, strides } })).rejects.toThrow(
      "cache.fused must have its rows at multiples of 4 bytes for their scales",
    );
  });

  it("refuses absorbed queries in two forms or none, and rows that are too few", async () => {
    const made = makeMlaCase({ ...sizes, lengths: [[1, 9]] });
    const put = putMlaCase(test, made);
    const { smScale, causal } = made.spec;
    const base: AbsorbedMlaSpec = { ...sizes, smScale, causal, returnLse: true };
    const run = (args: object, changes: Partial<AbsorbedMlaSpec> = {}) => {
      const attention = new AbsorbedMla(test.device, { ...base, ...changes });
      attention.plan(made.batch);
      return attention.run({ cache: put.separate(), ...args }).finally(() => attention.release());
    };
    const [q, qLatent, qPe] = [zeros(1, 2, 40), zeros(1, 2, 32), zeros(1, 2, 8)];
    await expect(run({ q, qLatent })).rejects.toThrow("q must be absent where qLatent or qPe is given");
    await expect(run({ qPe })).rejects.toThrow("q or qLatent must be given");
    await expect(run({ qLatent })).rejects.toThrow("qPe must be given exactly if qkRopeHeadDim is not 0, which is 8");
    await expect(run({ q, lse: zeros(1, 3) })).rejects.toThrow("lse must have shape [at least 1, 2], got [1, 3]");
    await expect(run({ q, ropeTable: zeros(8, 8) }, { rope: { style: "halves" } })).rejects.toThrow(
      "ropeTable must have shape [at least 9, 8], got [8, 8]",
    );
    const attention = new AbsorbedMla(test.device, base);
    attention.plan(made.batch);
    await expect(elsewhere((recorder) => attention.record(recorder, { q, cache: put.separate() }))).rejects.toThrow(
      foreign,
    );
    attention.release();
  });
});

describe("Palu's attention", () => {
  const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
  const lengths = [{ queryLen: 2, kvLen: 9 }];

  it("refuses layers and tensors of other specs and devices", async () => {
    const run = async (changes: Partial<PaluSpec>, given: object, batchChanges: object = {}): Promise<unknown> => {
      const spec = paluSpec({ rope: undefined, returnLse: false, ...changes });
      const { batch } = paluCase(spec, ranks, lengths, 1, batchChanges);
      const keyBias = spec.keyBias ? new Float32Array(32) : undefined;
      const layer = new PaluLayer(test.device, spec, { ...ranks, upK: new Float32Array(160), keyBias });
      const cache = allocateLatentCache(test.device, layer.layout, {
        ...{ storage: spec.storage, pageSize: 4, numPages: batch.numPages },
      });
      const attention = new BatchPaluAttention(test.device, spec);
      attention.plan(batch);
      try {
        return await attention.run({ layer, cache, q: zeros(2, 4, 16), ...given });
      } finally {
        for (const each of [attention, cache, layer]) each.release();
      }
    };
    expect(() => new BatchPaluAttention(test.device, paluSpec({ keys: "rotated" as "rebuilt" }))).toThrow(
      "keys must be rebuilt or absorbed, got rotated",
    );
    await expect(run({ keyBias: true }, { kScale: 0.5 })).rejects.toThrow(
      "kScale must be 1 with keyBias, got 0.5: it would scale the bias too",
    );
    const spec = paluSpec({ rope: undefined, returnLse: false });
    const factors = { ...ranks, upK: new Float32Array(160) };
    const wide = new PaluLayer(test.device, { ...spec, maxRankK: 9 }, factors);
    await expect(run({}, { layer: wide })).rejects.toThrow("layer was made for maxRankK = 9, the spec has 6");
    const far = new PaluLayer(other, spec, factors);
    await expect(run({}, { layer: far })).rejects.toThrow("layer belongs to another device");
    await expect(run({ sinks: true }, {})).rejects.toThrow("sinks must be given because the spec has sinks");
    await expect(run({}, { lse: zeros(2, 4) })).rejects.toThrow("lse must be absent: the spec lacks returnLse");
    await expect(run({ returnLse: true }, { lse: zeros(1, 4) })).rejects.toThrow(
      "lse must have shape [at least 2, 4], got [1, 4]",
    );
    const recent = { capacity: 4, numWindows: 2, starts: Int32Array.of(8), windows: Int32Array.of(1) };
    const windows = (n: number) => ({ recent: { k: zeros(n, 4, 10), v: zeros(n, 4, 8) } });
    await expect(run({ recent: "f32" }, windows(1), { recent })).rejects.toThrow(
      "recent.k must have at least 2 windows, got 1",
    );
    const attention = new BatchPaluAttention(test.device, spec);
    const { batch } = paluCase(spec, ranks, lengths);
    attention.plan(batch);
    const cache = allocateLatentCache(test.device, wide.layout, {
      ...{ storage: "f32" as const, pageSize: 4, numPages: batch.numPages },
    });
    await expect(
      elsewhere((recorder) => attention.record(recorder, { layer: wide, cache, q: zeros(2, 4, 16) })),
    ).rejects.toThrow(foreign);
    for (const each of [attention, wide, far, cache]) each.release();
  });

  it("refuses to expand what are no latents of its layer", async () => {
    const spec = paluSpec({ rope: undefined });
    const upV = new Float32Array(8 * 16);
    const layer = new PaluLayer(test.device, spec, {
      ...{ ...ranks, upK: new Float32Array(160), upV, valueBias: new Float32Array(32) },
    });
    const plain = new PaluLayer(test.device, spec, { ...ranks, upK: new Float32Array(160) });
    const [latents, out] = [zeros(2, 16), zeros(2, 4, 16)];
    const expand = (which: PaluLayer, x: DeviceTensor, y: object) =>
      test.run((recorder) => which.recordExpand(recorder, x, { ...out, ...y }));
    await expect(expand(plain, latents, {})).rejects.toThrow("recordExpand needs a layer with upV");
    await expect(expand(layer, zeros(2, 15), {})).rejects.toThrow("latents must have shape [tokens, 16], got [2, 15]");
    await expect(expand(layer, latents, { headStride: 20, rowStride: 80 })).rejects.toThrow(
      "out.headStride must be 16 with a bias, got 20",
    );
    for (const each of [layer, plain]) each.release();
  });

  it("refuses counts of tokens that are none", () => {
    const windows = new LatentWindows({ numWindows: 1, capacity: 4, blockSize: 2 });
    expect(() => windows.open(-1)).toThrow("numCached must be a whole number, got -1");
    const window = windows.open();
    if (!window) throw new Error("a window should have been free");
    expect(() => windows.append(window, 1.5)).toThrow("numNewTokens must be a whole number, got 1.5");
  });
});
