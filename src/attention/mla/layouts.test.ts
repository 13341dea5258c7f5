/** Things that have two forms and one meaning: where rotation happens, the order of rotated channels, and the size of chunks. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  attendMla,
  fusedRows,
  type MlaCase,
  makeMlaCase,
  referenceInputs,
} from "../../../test/fixtures/attention/mlaCase.ts";
import { bitsOf, normals, TestDevice, worstError } from "../../../test/ops/testDevice.ts";
import { type RopeSpec, RopeTable, ropeReference } from "../../ops/rope/index.ts";
import { freeResult } from "../results.ts";
import {
  AbsorbedMla,
  BatchMLAPagedAttention,
  decodeFp8Tokens,
  encodeFp8Tokens,
  fp8TokenLayout,
  mlaReference,
} from "./index.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };
const dims = { numHeads: 3, kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24, pageSize: 4 };
const interleaved: RopeSpec = {
  headDim: 8,
  rotaryDim: 8,
  style: "interleaved",
  theta: 100,
  scaling: { type: "default" },
};

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

const made = makeMlaCase({
  ...dims,
  lengths: [
    [5, 50],
    [1, 8],
    [3, 3],
  ],
});

/** The case with queries and cached keys rotated at their positions beforehand. */
function rotatedBefore(spec: RopeSpec): MlaCase {
  const { batch, qPe, kpe } = made;
  const [queries, keys] = [Float32Array.from(qPe), Float32Array.from(kpe)];
  for (let s = 0; s < batch.numSeqs; s++) {
    const [begin, end] = [batch.queryIndptr[s], batch.queryIndptr[s + 1]];
    const positions = Array.from({ length: end - begin }, (_, i) => batch.kvLens[s] - (end - begin) + i);
    queries.set(ropeReference(spec, qPe.subarray(begin * 24, end * 24), positions, 3), begin * 24);
    for (const [t, slot] of made.slotsOf(s).entries()) {
      keys.set(ropeReference(spec, kpe.subarray(slot * 8, slot * 8 + 8), [t], 1), slot * 8);
    }
  }
  return { ...made, qPe: queries, kpe: keys };
}

function columns(rows: Float32Array, from: number, to: number): Float32Array {
  return rows.filter((_, i) => i % 40 >= from && i % 40 < to);
}

/** Channels of pairs (2 i, 2 i + 1) at i and i + 4. */
function asHalves(values: Float32Array): Float32Array {
  return values.map((_, at) => {
    const [vector, d] = [at - (at % 8), at % 8];
    return values[vector + (d < 4 ? 2 * d : 2 * (d - 4) + 1)];
  });
}

describe.each(["absorbed", "rebuilt"] as const)("%s latent attention", (form) => {
  it("rotates once: on load, or before caching", async () => {
    const table = test.f32([50, 8], new RopeTable(interleaved).rows(50));
    const onLoad = await attendMla(test, made, { form, rope: { style: "interleaved" } }, { ropeTable: table });
    const before = await attendMla(test, rotatedBefore(interleaved), { form });
    expect(worstError(onLoad.out, before.out, tolerance)).toBeLessThan(1);
    expect(worstError(onLoad.lse, before.lse, tolerance)).toBeLessThan(1);
    const never = await attendMla(test, made, { form });
    expect(worstError(never.lse, before.lse, tolerance)).toBeGreaterThan(100);
  });

  it("reads rows of 8-bit latents, and latents with their scales apart", async () => {
    const rows = fusedRows(made);
    const bytes = encodeFp8Tokens(dims, rows);
    const decoded = decodeFp8Tokens(dims, bytes);
    const stored = { ...made, ckv: columns(decoded, 0, 32), kpe: columns(decoded, 32, 40) };
    const want = mlaReference(stored.spec, stored.batch, referenceInputs(stored));
    const { numPages } = made.batch;
    const { numBytes, scalesAt } = fp8TokenLayout(dims);
    const fused = test.bytes([numPages, 4, numBytes], "u8", bytes);
    const tokens = await attendMla(test, made, { form, storage: "fp8Token", rebuiltTokens: 9 }, { cache: { fused } });
    expect(worstError(tokens.out, want.o, tolerance)).toBeLessThan(1);
    expect(worstError(tokens.lse, want.lse, tolerance)).toBeLessThan(1);
    const ofTokens = (from: number, to: number) => bytes.filter((_, i) => i % numBytes >= from && i % numBytes < to);
    const cache = {
      ckv: test.bytes([numPages, 4, 32], "f8e4m3", ofTokens(0, 32)),
      ckvScales: test.bytes([numPages, 4, 1], "f32", ofTokens(scalesAt, scalesAt + 4)),
      kpe: test.bytes([numPages, 4, 8], "bf16", ofTokens(scalesAt + 4, numBytes)),
    };
    const tiles = await attendMla(test, made, { form, storage: "fp8Tiles", ropeStorage: "bf16" }, { cache });
    expect(worstError(tiles.out, want.o, tolerance)).toBeLessThan(1);
  });

  it("gives the same logits for rotated pairs side by side and for rotated halves", async () => {
    const halves = { ...made, qPe: asHalves(made.qPe), kpe: asHalves(made.kpe) };
    const table = test.f32([50, 8], new RopeTable(interleaved).rows(50));
    const first = await attendMla(test, made, { form, rope: { style: "interleaved" } }, { ropeTable: table });
    const second = await attendMla(test, halves, { form, rope: { style: "halves" } }, { ropeTable: table });
    expect(worstError(second.lse, first.lse, tolerance)).toBeLessThan(1);
    expect(worstError(second.out, first.out, tolerance)).toBeLessThan(1);
  });
});

describe("rebuilt latent attention", () => {
  it("gives the same with a context in one piece and in chunks of any size", async () => {
    const once = await attendMla(test, made, { form: "rebuilt", rebuiltTokens: 1000 });
    for (const rebuiltTokens of [1, 7, 32, 46]) {
      const chunked = await attendMla(test, made, { form: "rebuilt", rebuiltTokens });
      expect(worstError(chunked.out, once.out, tolerance)).toBeLessThan(1);
      expect(worstError(chunked.lse, once.lse, tolerance)).toBeLessThan(1);
    }
  });

  it("holds no more than its chunk, whatever the context", async () => {
    const bytesFor = (kvLen: number): number => {
      const long = makeMlaCase({ ...dims, numHeads: 16, lengths: [[4, kvLen]] });
      const spec = { ...long.spec, rope: undefined, form: "rebuilt", rebuiltTokens: 64 } as const;
      const before = test.device.stats().usedBytes;
      const attention = new BatchMLAPagedAttention(test.device, spec);
      attention.plan(long.batch);
      const used = test.device.stats().usedBytes - before;
      attention.release();
      return used;
    };
    bytesFor(200); // compiles the kernels, which stay
    const before = test.device.stats().usedBytes;
    // 16 heads of 48 channels: 3 KiB a token, of which 64 are held. The rest is lists and the plans of the chunks.
    expect(bytesFor(2000) - bytesFor(200)).toBeLessThan(1800 * 200);
    expect(test.device.stats().usedBytes).toBe(before);
  });
});

describe("absorbed queries", () => {
  it("come in one tensor or in two parts, with the same bits", async () => {
    const attention = new AbsorbedMla(test.device, { ...made.spec, rope: undefined, returnLse: true });
    attention.plan(made.batch);
    const q = normals(9 * 3 * 40, 7);
    const cache = {
      ckv: test.f32([made.batch.numPages, 4, 32], made.ckv),
      kpe: test.f32([made.batch.numPages, 4, 8], made.kpe),
    };
    const qTensor = test.f32([9, 3, 40], q);
    const [qLatent, qPe] = [test.f32([9, 3, 32], columns(q, 0, 32)), test.f32([9, 3, 8], columns(q, 32, 40))];
    const strided = { ...qTensor, rowStride: 120, headStride: 40 };
    const results: Float32Array[] = [];
    for (const queries of [
      { q: qTensor },
      { qLatent, qPe },
      {
        qLatent: { ...strided, shape: [9, 3, 32] },
        qPe: { ...strided, pointer: qTensor.pointer + 128, shape: [9, 3, 8] },
      },
    ]) {
      const { out, lse } = await attention.run({ ...queries, cache });
      results.push(test.device.f32At(out.pointer, 9 * 3 * 32).slice());
      freeResult(test.device, { out, lse });
    }
    expect(bitsOf(results[1])).toEqual(bitsOf(results[0]));
    expect(bitsOf(results[2])).toEqual(bitsOf(results[0]));
    await expect(attention.run({ cache })).rejects.toThrow("q or qLatent must be given");
    await expect(attention.run({ q: qTensor, qPe, cache })).rejects.toThrow(
      "q must be absent where qLatent or qPe is given",
    );
    await expect(attention.run({ qLatent, cache })).rejects.toThrow(
      "qPe must be given exactly if qkRopeHeadDim is not 0, which is 8",
    );
    await expect(attention.run({ q: { ...qTensor, shape: [9, 3, 39] }, cache })).rejects.toThrow(
      "q must have shape [at least 9, 3, 40], got [9, 3, 39]",
    );
    attention.release();
  });
});
