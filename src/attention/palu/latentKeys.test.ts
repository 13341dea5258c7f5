import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  asHalves,
  type PaluCase,
  paluCase,
  paluOnDevice,
  paluOnReference,
  paluSpec,
} from "../../../test/fixtures/attention/palu.ts";
import { type Lengths, largestError } from "../../../test/fixtures/attention/ragged.ts";
import { normals } from "../../../test/ops/testDevice.ts";
import { CpuDevice } from "../../devices/index.ts";
import { AttentionPlan, attentionReference, nhdStrides, type PageStorage } from "../../ops/attention/index.ts";
import { tasksPerItem } from "../../ops/attention/plan.ts";
import { absorbQueries, BatchPaluAttention, type PaluSpec, paluKernelSpec } from "./index.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

const mixed: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 12, kvLen: 12 },
  { queryLen: 5, kvLen: 41 },
  { queryLen: 33, kvLen: 64 },
];

async function expectEqualsReference(given: PaluCase, threads?: number): Promise<void> {
  const got = await paluOnDevice(device, given, threads);
  const want = paluOnReference(given);
  expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
  expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
}

describe("recent tokens at full precision", () => {
  it.each(["f32", "f16"] as const)("in windows of %s are in one softmax with the quantised ones", async (recent) => {
    const capacity = 16;
    const storage: PageStorage = { kind: "grouped", bits: 3, groupSize: 8 };
    const spec = paluSpec({ storage, recent, maxRankK: 20, maxRankV: 20, splitSize: 32 });
    const ranks = { ranksK: [20, 13], ranksV: [9, 20] };
    // Starts inside, at both ends of, and past a page; a sequence that is all window; one that has none.
    const lengths = [70, 12, 41, 64, 16].map((kvLen) => ({ queryLen: Math.min(5, kvLen), kvLen }));
    const starts = Int32Array.of(58, 0, 30, 64, 0);
    const windows = Int32Array.of(3, 1, 4, -7, 0);
    const recentTokens = { starts, windows, capacity, numWindows: 5 };
    const given = paluCase(spec, ranks, lengths, 1, { recent: recentTokens });
    const { keyRanks, valueRanks } = given.layout;
    const fill = (row: number, seed: number): Float32Array => {
      const values = new Float32Array(5 * capacity * row).fill(Number.NaN);
      lengths.forEach(({ kvLen }, s) => {
        for (let t = starts[s]; t < kvLen; t++) {
          values.set(normals(row, seed + 100 * s + t), (windows[s] * capacity + (t % capacity)) * row);
        }
      });
      return recent === "f16" ? asHalves(values) : values;
    };
    // Pages behind a start are not read: what is there now is poison.
    const poison = (latents: Float32Array, row: number): Float32Array => {
      const poisoned = latents.slice();
      lengths.forEach(({ kvLen }, s) => {
        for (let t = starts[s]; t < kvLen; t++) {
          const page = given.batch.blockTables[s * given.batch.maxPages + Math.floor(t / 4)];
          poisoned.fill(Number.NaN, (page * 4 + (t % 4)) * row, (page * 4 + (t % 4) + 1) * row);
        }
      });
      return poisoned;
    };
    await expectEqualsReference(
      {
        ...given,
        recentK: fill(keyRanks, 1),
        recentV: fill(valueRanks, 2),
        kLatents: poison(given.kLatents, keyRanks),
        vLatents: poison(given.vLatents, valueRanks),
      },
      100,
    );
  });
});

describe("rebuilt keys", () => {
  it("make the attention of plain keys and latent values", async () => {
    const given = paluCase(paluSpec({ keyBias: true }), { ranksK: [6, 4], ranksV: [5, 5] }, mixed);
    const got = await paluOnDevice(device, given);
    const dense = denseCase(given);
    expect(largestError(got.out, Float32Array.from(dense.out))).toBeLessThan(5e-6);
    expect(largestError(got.lse, Float32Array.from(dense.lse))).toBeLessThan(3e-6);
  });

  it("take their bias before the rotation, not after it", async () => {
    const given = paluCase(paluSpec({ keyBias: true }), { ranksK: [6, 4], ranksV: [5, 5] }, mixed);
    const after = denseCase(given, "after rope");
    expect(largestError((await paluOnDevice(device, given)).out, Float32Array.from(after.out))).toBeGreaterThan(0.01);
  });

  it("rotate by their absolute position, far out and with an offset of the whole sequence", async () => {
    const lengths = [
      { queryLen: 1, kvLen: 33 },
      { queryLen: 3, kvLen: 40 },
    ];
    const spec = paluSpec({ splitSize: 32, slidingWindow: 20 });
    const positionOffsets = Int32Array.of(65_500, 7);
    const given = paluCase(spec, { ranksK: [6, 4], ranksV: [3, 5] }, lengths, 1, { positionOffsets });
    await expectEqualsReference(given, 100);
    const unmoved = paluOnReference({ ...given, batch: { ...given.batch, positionOffsets: undefined } });
    expect(largestError((await paluOnDevice(device, given)).out, unmoved.out)).toBeGreaterThan(0.01);
  });

  it.each([1, 4, 8, 32])("are rebuilt by one task for all %i query heads that read them", (group) => {
    const spec = paluKernelSpec(paluSpec({ numKvHeads: 2, numQHeads: 2 * group }));
    expect(tasksPerItem(spec)).toBe(2);
    const plan = new AttentionPlan(spec, 1);
    plan.update(paluCase(paluSpec(), { ranksK: [6], ranksV: [5] }, [{ queryLen: 1, kvLen: 200 }]).batch);
    expect(plan.numItems).toBe(1);
  });

  it("come out of the sum in f32, also where latents are f16", async () => {
    // 64 products of 2048 and 1 / 64: a sum in f16 stalls at steps of 2, one in f32 is exact.
    const rank = 64;
    const spec = paluSpec({
      storage: "f16",
      maxRankK: rank,
      numQHeads: 1,
      numKvHeads: 1,
      rope: undefined,
      headDim: 8,
      smScale: 1,
    });
    const given = paluCase(spec, { ranksK: [rank], ranksV: [5] }, [{ queryLen: 1, kvLen: 1 }]);
    const page = given.batch.blockTables[0] * 4;
    const kLatents = given.kLatents.slice();
    for (let r = 0; r < rank; r++) kLatents[page * rank + r] = r === 0 ? 2048 : 1;
    const upK = new Float32Array(rank * 8).fill(1);
    const q = new Float32Array(8).fill(1 / 8);
    const { lse } = await paluOnDevice(device, { ...given, kLatents, upK, q });
    expect(lse[0]).toBe(2048 + 63);
  });
});

/** The same call on keys rebuilt by the test, as plain attention with values as wide as their latents. */
function denseCase(given: PaluCase, bias: "before rope" | "after rope" = "before rope") {
  const { spec, ranks, batch, upK, keyBias, layout } = given;
  const { numKvHeads, headDim, maxRankV } = spec;
  const numSlots = given.kLatents.length / layout.keyRanks;
  const kPages = new Float64Array(numSlots * numKvHeads * headDim).fill(Number.NaN);
  const vPages = new Float64Array(numSlots * numKvHeads * maxRankV).fill(Number.NaN);
  for (let s = 0; s < batch.numSeqs; s++) {
    for (let t = 0; t < batch.kvLens[s]; t++) {
      const slot = batch.blockTables[s * batch.maxPages + Math.floor(t / 4)] * 4 + (t % 4);
      let upAt = 0;
      for (let head = 0; head < numKvHeads; head++) {
        const group = Math.floor((head * ranks.ranksK.length) / numKvHeads);
        const rank = ranks.ranksK[group];
        const latent = slot * layout.keyRanks + (group === 0 ? 0 : ranks.ranksK[0]);
        const key = Array.from({ length: headDim }, (_, d) => {
          let value = keyBias && bias === "before rope" ? keyBias[head * headDim + d] : 0;
          for (let r = 0; r < rank; r++) value += given.kLatents[latent + r] * upK[upAt + r * headDim + d];
          return value;
        });
        const half = headDim / 2;
        for (let i = 0; i < half; i++) {
          const angle = t * 10000 ** (-i / half);
          const [a, b] = [key[i], key[i + half]];
          key[i] = a * Math.cos(angle) - b * Math.sin(angle);
          key[i + half] = b * Math.cos(angle) + a * Math.sin(angle);
        }
        if (keyBias && bias === "after rope") for (let d = 0; d < headDim; d++) key[d] += keyBias[head * headDim + d];
        kPages.set(key, (slot * numKvHeads + head) * headDim);
        const value = slot * layout.valueRanks + group * ranks.ranksV[0];
        vPages.set(given.vLatents.subarray(value, value + maxRankV), (slot * numKvHeads + head) * maxRankV);
        upAt += rank * headDim;
      }
    }
  }
  const { numQHeads, pageSize, causal, smScale } = spec;
  return attentionReference({ numQHeads, numKvHeads, headDim, headDimV: maxRankV, pageSize, causal, smScale }, batch, {
    q: given.q,
    kPages,
    vPages,
    kStrides: nhdStrides({ pageSize, numKvHeads, headDim }),
    vStrides: nhdStrides({ pageSize, numKvHeads, headDim: maxRankV }),
  });
}

describe("absorbed keys", () => {
  it("score as rebuilt ones do where keys are not rotated", async () => {
    const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
    const rebuilt = paluCase(paluSpec({ rope: undefined, alibi: true }), ranks, mixed);
    const { upK, spec } = rebuilt;
    const q = absorbQueries(rebuilt.q, upK, ranks.ranksK, spec);
    const absorbed: PaluCase = { ...rebuilt, spec: { ...spec, keys: "absorbed" }, q };
    const [got, want] = [await paluOnDevice(device, absorbed), paluOnReference(rebuilt)];
    expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
  });

  it.each([1, 2, 4])("are the same for %i groups that share the loads of their latents", async (numGroups) => {
    const ranks = { ranksK: [6, 4, 5, 6].slice(0, numGroups), ranksV: [3, 5, 2, 4].slice(0, numGroups) };
    const rebuilt = paluCase(paluSpec({ rope: undefined, numQHeads: 8, numKvHeads: 4 }), ranks, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, ranks.ranksK, rebuilt.spec);
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed" };
    const want = await paluOnDevice(device, { ...rebuilt, spec, q });
    const got = await paluOnDevice(device, { ...rebuilt, spec: { ...spec, numGroups }, q });
    expect(largestError(got.out, want.out)).toBeLessThan(1e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(1e-6);
    const reference = paluOnReference(rebuilt);
    expect(largestError(got.out, reference.out)).toBeLessThan(5e-6);
  });

  it.each([
    [2, "f32"],
    [4, "f16"],
    [1, "i8"],
  ] as const)("are the same as keys and values like any others: %i groups in %s", async (numGroups, storage) => {
    const ranks = { ranksK: Array(numGroups).fill(16), ranksV: Array(numGroups).fill(8) };
    const shape = { rope: undefined, numQHeads: 8, numKvHeads: 4, maxRankK: 16, maxRankV: 8, storage } as const;
    const rebuilt = paluCase(paluSpec(shape), ranks, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, ranks.ranksK, rebuilt.spec);
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed", numGroups, equalRanks: true };
    const got = await paluOnDevice(device, { ...rebuilt, spec, q });
    const want = paluOnReference(rebuilt);
    expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
  });

  it("want equal ranks where the spec says so", async () => {
    const rebuilt = paluCase(paluSpec({ rope: undefined }), { ranksK: [6, 4], ranksV: [5, 5] }, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, [6, 4], rebuilt.spec);
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed", numGroups: 2, equalRanks: true };
    await expect(paluOnDevice(device, { ...rebuilt, spec, q })).rejects.toThrow("layer has ranksK [6, 4]");
    expect(() => new BatchPaluAttention(device, { ...spec, numGroups: undefined })).toThrow(
      "equalRanks needs numGroups",
    );
    expect(() => new BatchPaluAttention(device, { ...spec, recent: "f32" })).toThrow("equalRanks must be absent");
  });

  it("want layers of the groups that the spec says", async () => {
    const rebuilt = paluCase(paluSpec({ rope: undefined }), { ranksK: [6, 4], ranksV: [3, 5] }, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, [6, 4], rebuilt.spec);
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed", numGroups: 1 };
    await expect(paluOnDevice(device, { ...rebuilt, spec, q })).rejects.toThrow(
      "layer has 2 groups, the spec has numGroups = 1",
    );
    expect(() => new BatchPaluAttention(device, { ...spec, numGroups: 3 })).toThrow("numGroups must divide numKvHeads");
    expect(() => new BatchPaluAttention(device, { ...spec, keys: "rebuilt" })).toThrow(
      "numGroups = 1 needs keys = absorbed",
    );
  });

  it("do not read queries past the rank of their group", async () => {
    const ranks = { ranksK: [6, 4], ranksV: [3, 5] };
    const rebuilt = paluCase(paluSpec({ rope: undefined }), ranks, mixed);
    const q = absorbQueries(rebuilt.q, rebuilt.upK, ranks.ranksK, rebuilt.spec);
    const poisoned = q.map((value, i) => (i % 6 >= 4 && Math.floor(i / 6) % 4 >= 2 ? Number.NaN : value));
    const spec: PaluSpec = { ...rebuilt.spec, keys: "absorbed" };
    const got = await paluOnDevice(device, { ...rebuilt, spec, q: poisoned });
    expect(largestError(got.out, paluOnReference(rebuilt).out)).toBeLessThan(5e-6);
  });

  it("are refused with rope or a bias", () => {
    expect(() => new BatchPaluAttention(device, paluSpec({ keys: "absorbed" }))).toThrow(
      "rope needs latent.keys = rebuilt",
    );
    expect(
      () => new BatchPaluAttention(device, paluSpec({ keys: "absorbed", rope: undefined, keyBias: true })),
    ).toThrow("latent.bias needs latent.keys = rebuilt");
  });
});
