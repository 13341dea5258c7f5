import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { paluSpec, upProjection } from "../../../test/fixtures/attention/palu.ts";
import { normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import {
  absorbQueries,
  expandLatents,
  fuseOutputProjection,
  headUpProjections,
  type PaluHeads,
  PaluLayer,
} from "./index.ts";

const tight = { relative: 1e-6, absolute: 1e-6 };

/** Row-major [rows, inner] times [columns, inner]^T. */
function timesTransposed(a: ArrayLike<number>, b: ArrayLike<number>, inner: number): Float64Array {
  const columns = b.length / inner;
  return Float64Array.from({ length: (a.length / inner) * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns];
    let sum = 0;
    for (let c = 0; c < inner; c++) sum += a[i * inner + c] * b[j * inner + c];
    return sum;
  });
}

const packedWidth = (ranks: readonly number[], { numQHeads }: PaluHeads): number =>
  ranks.reduce((sum, rank) => sum + (rank * numQHeads) / ranks.length, 0);

const shapes: readonly (readonly [string, PaluHeads, readonly number[]])[] = [
  ["multi-head attention, a rank for each head", { numQHeads: 4, numKvHeads: 4, headDim: 6 }, [3, 5, 2, 4]],
  ["grouped queries, two groups of unequal rank", { numQHeads: 12, numKvHeads: 4, headDim: 6 }, [5, 8]],
  ["grouped queries, all heads in one group", { numQHeads: 6, numKvHeads: 2, headDim: 8 }, [7]],
];

describe("headUpProjections", () => {
  it("transposes each head of a group and keeps groups and heads in order", () => {
    // Two groups of two heads with 2 channels, ranks 1 and 2; rows of the checkpoint are head-major.
    const factor = [1, 2, 3, 4, /* second group */ 10, 11, 12, 13, 20, 21, 22, 23];
    const up = headUpProjections(factor, [1, 2], { numKvHeads: 4, headDim: 2 });
    expect([...up]).toEqual([1, 2, 3, 4, 10, 12, 11, 13, 20, 22, 21, 23]);
  });

  it("names a factor of another length, and groups that do not divide the heads", () => {
    const heads = { numKvHeads: 4, headDim: 2 };
    expect(() => headUpProjections([1, 2, 3], [1, 2], heads)).toThrow("factor must have 12 elements, got 3");
    expect(() => headUpProjections([], [1, 2, 3], heads)).toThrow("groups that divides numKvHeads = 4, got 3");
  });
});

describe.each(shapes)("a fused output projection for %s", (_name, heads, ranksV) => {
  const { numQHeads, numKvHeads, headDim } = heads;
  const hidden = 10;
  const oProj = normals(hidden * numQHeads * headDim, 1);
  const upV = upProjection(ranksV, numKvHeads, headDim, 2);
  const vBias = normals(numKvHeads * headDim, 3);
  const latents = normals(3 * packedWidth(ranksV, heads), 4);

  it.each([undefined, vBias])("is the output projection of the full outputs", (bias) => {
    const fused = fuseOutputProjection(oProj, upV, ranksV, heads, bias);
    expect(fused.inFeatures).toBe(packedWidth(ranksV, heads));
    expect(fused.weight.length).toBe(hidden * fused.inFeatures);
    const got = timesTransposed(latents, fused.weight, fused.inFeatures).map((y, i) => y + fused.bias[i % hidden]);
    const full = expandLatents(latents, upV, ranksV, heads, bias);
    expect(worstError(got, timesTransposed(full, oProj, numQHeads * headDim), tight)).toBeLessThan(2);
  });

  it("takes the factor of the head that a query head reads, not of the query head's own number", () => {
    const row = expandLatents(latents, upV, ranksV, heads).subarray(0, numQHeads * headDim);
    const group = numQHeads / numKvHeads;
    let from = 0;
    for (let head = 0; head < numQHeads; head++) {
      const kvHead = Math.floor(head / group);
      const rank = ranksV[Math.floor((kvHead * ranksV.length) / numKvHeads)];
      let upAt = 0;
      for (let before = 0; before < kvHead; before++) {
        upAt += ranksV[Math.floor((before * ranksV.length) / numKvHeads)] * headDim;
      }
      for (let d = 0; d < headDim; d++) {
        let want = 0;
        for (let r = 0; r < rank; r++) want += latents[from + r] * upV[upAt + r * headDim + d];
        expect(row[head * headDim + d]).toBeCloseTo(want, 10);
      }
      from += rank;
    }
  });
});

it("weighted sums of latents expand to the weighted sum of the values: the output is exact in the latents", () => {
  const heads = { numQHeads: 2, numKvHeads: 1, headDim: 6 };
  const [a, b] = [normals(2 * 4, 1), normals(2 * 4, 2)];
  const upV = normals(4 * 6, 3);
  const mixed = a.map((value, i) => 0.3 * value + 0.7 * b[i]);
  const expand = (x: Float32Array) => expandLatents(x, upV, [4], heads);
  const [fullA, fullB] = [expand(a), expand(b)];
  const want = fullA.map((value, i) => 0.3 * value + 0.7 * fullB[i]);
  expect(worstError(expand(mixed), want, tight)).toBeLessThan(1);
});

it("fuseOutputProjection names what has another length", () => {
  const heads = { numQHeads: 2, numKvHeads: 1, headDim: 3 };
  const upV = new Float32Array(6);
  expect(() => fuseOutputProjection(new Float32Array(7), upV, [2], heads)).toThrow(
    "oProj must have rows of numQHeads * headDim = 6 elements, got 7 elements",
  );
  expect(() => fuseOutputProjection(new Float32Array(6), new Float32Array(5), [2], heads)).toThrow(
    "upV must have 6 elements, got 5",
  );
  expect(() => fuseOutputProjection(new Float32Array(6), upV, [2], heads, [1])).toThrow("vBias must have 3 elements");
});

describe.each(Object.entries(testDevices))("a layer's projections on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterAll(() => test.close());

  it.each(shapes)("equal the host's for %s", async (_shape, heads, ranks) => {
    const { numQHeads, numKvHeads, headDim } = heads;
    const spec = paluSpec({ ...heads, maxRankK: 9, maxRankV: 9 });
    const [upK, upV] = [1, 2].map((seed) => upProjection(ranks, numKvHeads, headDim, seed));
    const valueBias = normals(numKvHeads * headDim, 3);
    const layer = new PaluLayer(test.device, spec, { ranksK: ranks, ranksV: ranks, upK, upV, valueBias });
    const numTokens = 5;
    const qValues = normals(numTokens * numQHeads * headDim, 4);
    const q = test.f32([numTokens, numQHeads, headDim], qValues);
    const absorbed = test.f32([numTokens, numQHeads, 9], new Float32Array(numTokens * numQHeads * 9));
    const latentValues = normals(numTokens * layer.layout.outRow, 5);
    const latents = test.f32([numTokens, layer.layout.outRow], latentValues);
    const out = test.f32([numTokens, numQHeads, headDim], new Float32Array(numTokens * numQHeads * headDim));
    await test.run((recorder) => {
      layer.recordAbsorb(recorder, q, absorbed);
      layer.recordExpand(recorder, latents, out);
    });
    expect(worstError(test.readF32(absorbed), absorbQueries(qValues, upK, ranks, heads, 9), tight)).toBeLessThan(2);
    const full = expandLatents(latentValues, upV, ranks, heads, valueBias);
    expect(worstError(test.readF32(out), full, tight)).toBeLessThan(2);
    layer.release();
    test.clear();
  });

  it("name what does not fit", () => {
    const spec = paluSpec();
    const layer = new PaluLayer(test.device, spec, { ranksK: [6], ranksV: [5], upK: new Float32Array(2 * 6 * 16) });
    const commands = test.device.commands();
    const recorder = { device: test.device, commands };
    const tensor = (...shape: number[]) => ({ ...test.f32([1], [0]), shape });
    expect(() => layer.recordExpand(recorder, tensor(2, 20), tensor(2, 4, 16))).toThrow("needs a layer with upV");
    expect(() => layer.recordAbsorb(recorder, tensor(2, 4, 15), tensor(2, 4, 6))).toThrow(
      "q must have shape [tokens, 4, 16], got [2, 4, 15]",
    );
    commands.free();
    layer.release();
    test.clear();
  });
});
