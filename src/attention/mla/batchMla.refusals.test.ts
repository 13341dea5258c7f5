import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { makeMlaCase, putMlaCase } from "../../../test/fixtures/attention/mlaCase.ts";
import { TestDevice } from "../../../test/ops/testDevice.ts";
import { BatchMLAPagedAttention } from "./index.ts";

const small = { kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24 };

describe("what latent attention refuses", () => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create({ threads: 1 });
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each([
    [{ numHeads: 0 }, "numHeads must be an integer of at least 1, got 0"],
    [{ qkRopeHeadDim: -1 }, "qkRopeHeadDim must be an integer of at least 0, got -1"],
    [{ kvLoraRank: 1020 }, "headDim must be an integer from 1 to 1024, got 1028"],
    [{ pageSize: 0 }, "pageSize must be an integer of at least 1, got 0"],
    [{ smScale: NaN }, "smScale must be a finite number, got NaN"],
    [{ absorbThreshold: -1 }, "absorbThreshold must be an integer of at least 0, got -1"],
    [{ rebuiltTokens: 0 }, "rebuiltTokens must be an integer of at least 1, got 0"],
    [{ storage: "fp8Token", kvLoraRank: 30 }, "kvLoraRank must be a multiple of 4 for 8-bit rows, got 30"],
    [{ storage: "fp8Token", ropeStorage: "f16" }, "ropeStorage must be bf16 or absent with storage fp8Token, got f16"],
    [{ qkRopeHeadDim: 0, rope: { style: "halves" } }, "rope must be absent for qkRopeHeadDim = 0"],
  ] as const)("a spec with %o", (changes, message) => {
    const spec = { ...small, numHeads: 2, pageSize: 4, smScale: 0.2, causal: true, ...changes };
    expect(() => new BatchMLAPagedAttention(test.device, spec)).toThrow(message);
  });

  it("tensors that do not fit", async () => {
    const made = makeMlaCase({ ...small, numHeads: 2, pageSize: 4, lengths: [[1, 9]] });
    const attention = new BatchMLAPagedAttention(test.device, { ...made.spec, rope: undefined });
    const put = putMlaCase(test, made);
    const cache = put.separate();
    const record = (changes: object) =>
      test.run((recorder) =>
        attention.record(recorder, { ...put, cache, out: put.result(24), lse: undefined, ...changes }),
      );
    await expect(record({})).rejects.toThrow("record: plan was never called");
    attention.plan(made.batch);
    await record({});
    const { qNope, kvBProj } = put;
    await expect(record({ qNope: { ...qNope, shape: [1, 2, 15] } })).rejects.toThrow(
      "qNope must have shape [at least 1, 2, 16], got [1, 2, 15]",
    );
    await expect(record({ qPe: undefined })).rejects.toThrow(
      "qPe must be given exactly if qkRopeHeadDim is not 0, which is 8",
    );
    await expect(record({ kvBProj: { ...kvBProj, shape: [79, 32] } })).rejects.toThrow(
      "kvBProj must have shape [80, 32], got [79, 32]",
    );
    await expect(record({ cache: { ckv: cache.ckv } })).rejects.toThrow(
      "cache.kpe must be given for qkRopeHeadDim = 8",
    );
    await expect(record({ cache: { ...cache, ckv: { ...cache.ckv, type: "f16" } } })).rejects.toThrow(
      "cache.ckv must be of type f32, got f16",
    );
    await expect(record({ cache: { ...cache, ckv: { ...cache.ckv, shape: [2, 4, 32] } } })).rejects.toThrow(
      "cache.ckv must have shape [at least 6, 4, 32], got [2, 4, 32]",
    );
    await expect(record({ cache: { ...cache, ckvScales: cache.ckv } })).rejects.toThrow(
      "cache.ckvScales must be given exactly for storage fp8Tiles, which is f32",
    );
    await expect(record({ z: put.result(32) })).rejects.toThrow("z needs a spec of form absorbed, got auto");
    await expect(record({ lse: put.lseResult() })).rejects.toThrow("lse must be absent: the spec lacks returnLse");
    await expect(record({ sinks: put.lseResult() })).rejects.toThrow("sinks must be absent: the spec lacks sinks");
    await expect(record({ ropeTable: put.lseResult() })).rejects.toThrow(
      "ropeTable must be absent: the spec lacks rope",
    );
    await expect(record({ ckvScale: 0 })).rejects.toThrow("ckvScale must be a finite positive number, got 0");
    await expect(record({ kpeScale: Infinity })).rejects.toThrow(
      "kpeScale must be a finite positive number, got Infinity",
    );
    expect(() => attention.plan({ ...made.batch, kvLens: Int32Array.of(90) })).toThrow(
      "kvLens[0] = 90 needs 23 pages of 4 tokens",
    );
    const blockTables = made.batch.blockTables.slice().fill(77, 0, 1);
    expect(() => attention.plan({ ...made.batch, blockTables })).toThrow("blockTables[0][0] = 77 is not a page");
    expect(() => attention.plan({ ...made.batch, blockTables }, { checkPages: false })).not.toThrow();
    attention.release();
  });
});
