import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { normals, TestDevice, worstError } from "../../../test/ops/testDevice.ts";
import { recordHeadProjection } from "../../ops/headProjection/index.ts";
import { matmul } from "../../ops/matmul/index.ts";
import type { RopeSpec } from "../../ops/rope/index.ts";
import {
  AbsorbedMla,
  absorbIntoOutput,
  absorbIntoQueries,
  BatchMLAPagedAttention,
  type MlaModuleSpec,
  type MlaModuleWeights,
  mlaModule,
  mlaSoftmaxScale,
} from "./index.ts";

describe("mlaSoftmaxScale", () => {
  const yarn = (mscaleAllDim: number) => ({ factor: 40, mscaleAllDim });
  // biome-ignore lint/suspicious/noApproximativeNumericConstant: it is what DeepSeek-V2's config says, not a root.
  const mscaleV2 = 0.707;

  it("is that of queries before absorption", () => {
    expect(mlaSoftmaxScale(128, 64)).toBe(192 ** -0.5);
    expect(mlaSoftmaxScale(128, 64)).toBeCloseTo(0.0721688, 7);
    expect(mlaSoftmaxScale(64, 32)).toBeCloseTo(0.102062, 6);
    expect(mlaSoftmaxScale(256, 0)).toBe(1 / 16);
  });

  it("has the square of yarn's magnitude", () => {
    expect(mlaSoftmaxScale(128, 64, yarn(mscaleV2))).toBe(192 ** -0.5 * (0.1 * mscaleV2 * Math.log(40) + 1) ** 2);
    expect(mlaSoftmaxScale(128, 64, yarn(mscaleV2))).toBeCloseTo(0.114721, 6);
    expect(mlaSoftmaxScale(128, 64, yarn(1))).toBeCloseTo(0.135234, 6);
    expect(mlaSoftmaxScale(128, 64, { factor: 1, mscaleAllDim: 1 })).toBe(192 ** -0.5);
  });

  it("names what is wrong", () => {
    expect(() => mlaSoftmaxScale(0, 64)).toThrow("qkNopeHeadDim must be an integer of at least 1, got 0");
    expect(() => mlaSoftmaxScale(128, 64, { factor: 0, mscaleAllDim: 1 })).toThrow(
      "yarn.factor must be a positive number, got 0",
    );
    expect(() => mlaSoftmaxScale(128, 64, yarn(NaN))).toThrow("yarn.mscaleAllDim must be a finite number, got NaN");
  });
});

/** Weights with standard deviations of 1 / sqrt(in features): logits of order 1, where a wrong scale or base shows. */
function makeModule(dims: { numHeads: number; qRank?: number; style: "halves" | "interleaved" }) {
  const { numHeads, qRank, style } = dims;
  const rope: RopeSpec = { headDim: 8, rotaryDim: 8, style, theta: 1000, scaling: { type: "default" } };
  const spec: MlaModuleSpec = {
    ...{ hiddenSize: 48, numHeads, kvLoraRank: 32, qkNopeHeadDim: 16, qkRopeHeadDim: 8, vHeadDim: 12, rope },
    smScale: mlaSoftmaxScale(16, 8),
    normEps: 1e-6,
  };
  let seed = 10;
  const matrix = (rows: number, columns: number) => normals(rows * columns, seed++).map((x) => x / Math.sqrt(columns));
  const queryRows = numHeads * 24;
  const weights: MlaModuleWeights = {
    qProj: matrix(qRank ?? queryRows, 48),
    qLowRank:
      qRank === undefined
        ? undefined
        : { norm: normals(qRank, seed++).map((x) => 1 + x / 10), qBProj: matrix(queryRows, qRank) },
    kvAProj: matrix(40, 48),
    kvNorm: normals(32, seed++).map((x) => 1 + x / 10),
    kvBProj: matrix(numHeads * 28, 32),
    oProj: matrix(48, numHeads * 12),
  };
  return { spec, weights, hidden: normals(19 * 48, 3), positions: Int32Array.from({ length: 19 }, (_, i) => i) };
}

/** The source's own acceptance: cosine of the whole outputs, and the sum of errors over the sum of magnitudes. */
function acceptance(got: ArrayLike<number>, want: ArrayLike<number>) {
  let [dot, gotSquares, wantSquares, errors, magnitudes] = [0, 0, 0, 0, 0];
  for (let i = 0; i < want.length; i++) {
    dot += got[i] * want[i];
    gotSquares += got[i] ** 2;
    wantSquares += want[i] ** 2;
    errors += Math.abs(got[i] - want[i]);
    magnitudes += Math.abs(want[i]);
  }
  return { cosine: dot / Math.sqrt(gotSquares * wantSquares), wmape: errors / magnitudes };
}

describe.each([
  { numHeads: 3, qRank: 20, style: "interleaved" },
  { numHeads: 5, style: "halves" },
] as const)("a layer with %o", (dims) => {
  const { spec, weights, hidden, positions } = makeModule(dims);
  const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = spec;
  const want = mlaModule(spec, weights, hidden, positions);
  const numTokens = positions.length;
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create({ threads: 2 });
  });
  afterAll(() => test.close());

  const batch = {
    numRows: 19,
    numSeqs: 1,
    queryIndptr: Int32Array.of(0, 19),
    kvLens: Int32Array.of(19),
    blockTables: Int32Array.of(0),
    maxPages: 1,
    numPages: 1,
  };
  const f32 = (shape: number[], values: ArrayLike<number>) => test.f32(shape, values);
  const cache = () => ({ ckv: f32([1, 19, kvLoraRank], want.ckv), kpe: f32([1, 19, qkRopeHeadDim], want.kpe) });

  it("has logits of order 1", () => {
    const spread = want.lse.map((lse, i) => Math.abs(lse - Math.log(1 + Math.floor(i / numHeads))));
    expect(Math.max(...spread)).toBeLessThan(4);
    expect(Math.max(...spread)).toBeGreaterThan(0.1);
  });

  it.each(["absorbed", "rebuilt"] as const)(
    "comes out the same with queries absorbed at run time, %s",
    async (form) => {
      const attention = new BatchMLAPagedAttention(test.device, {
        ...spec,
        rope: undefined,
        pageSize: 19,
        causal: true,
        returnLse: true,
        form,
      });
      attention.plan(batch);
      const { out, lse } = await attention.run({
        qNope: f32([19, numHeads, qkNopeHeadDim], want.qNope),
        qPe: f32([19, numHeads, qkRopeHeadDim], want.qPe),
        kvBProj: f32([numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank], weights.kvBProj),
        cache: cache(),
      });
      if (!lse) throw new Error("no lse");
      const o = test.device.f32At(out.pointer, numTokens * numHeads * vHeadDim).slice();
      const y = matmul({ weight: weights.oProj, rows: spec.hiddenSize, columns: numHeads * vHeadDim, x: o });
      expect(worstError(y, want.y, { relative: 0, absolute: 1e-4 })).toBeLessThan(1);
      expect(acceptance(y, want.y).cosine).toBeGreaterThan(0.99);
      expect(acceptance(y, want.y).wmape).toBeLessThan(0.02);
      expect(
        worstError(test.device.f32At(lse.pointer, numTokens * numHeads), want.lse, { relative: 0, absolute: 1e-5 }),
      ).toBeLessThan(1);
      attention.release();
    },
  );

  it("comes out the same with weights absorbed beforehand", async () => {
    const qBProj = weights.qLowRank?.qBProj ?? weights.qProj;
    const columns = qBProj.length / (numHeads * (qkNopeHeadDim + qkRopeHeadDim));
    // What comes before q_b_proj; it is the same in all forms.
    const c = weights.qLowRank ? queryLatent(spec, weights, hidden) : Float32Array.from(hidden);
    const absorbedQueries = absorbIntoQueries(spec, qBProj, weights.kvBProj);
    const absorbedOutput = absorbIntoOutput(spec, weights.kvBProj, weights.oProj);
    const attention = new AbsorbedMla(test.device, {
      ...spec,
      rope: undefined,
      pageSize: 19,
      causal: true,
      returnLse: true,
    });
    attention.plan(batch);
    const qLatent = f32([19, numHeads, kvLoraRank], new Float32Array(19 * numHeads * kvLoraRank));
    const out = f32([19, numHeads, kvLoraRank], new Float32Array(19 * numHeads * kvLoraRank));
    const lse = f32([19, numHeads], new Float32Array(19 * numHeads));
    const weight = f32([numHeads * kvLoraRank, columns], absorbedQueries);
    const qPe = f32([19, numHeads, qkRopeHeadDim], want.qPe);
    await test.run((recorder) => {
      const x = { ...f32([19, numHeads, columns], c), headStride: 0 };
      recordHeadProjection(recorder, { kind: "expand", rows: kvLoraRank, columns }, { x, weight, out: qLatent });
      attention.record(recorder, { qLatent, qPe, cache: cache(), out, lse });
    });
    const y = matmul({
      weight: absorbedOutput,
      rows: spec.hiddenSize,
      columns: numHeads * kvLoraRank,
      x: test.readF32(out),
    });
    expect(worstError(y, want.y, { relative: 0, absolute: 1e-4 })).toBeLessThan(1);
    expect(worstError(test.readF32(lse), want.lse, { relative: 0, absolute: 1e-5 })).toBeLessThan(1);
    attention.release();
  });
});

describe("weights absorbed on the host", () => {
  const dims = { numHeads: 2, kvLoraRank: 3, qkNopeHeadDim: 2, qkRopeHeadDim: 1, vHeadDim: 1 };

  it("take heads in turn: rows of W_UK, then of W_UV", () => {
    // Head 0: W_UK = [[1, 0, 0], [0, 1, 0]], W_UV = [0, 0, 1]; head 1: twice that.
    const kvBProj = [1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 2, 0, 0, 0, 2];
    // One query channel; head 0 has rows 1, 2 and, for rope, NaN.
    expect([...absorbIntoQueries(dims, [1, 2, NaN, 3, 4, NaN], kvBProj)]).toEqual([1, 2, 0, 6, 8, 0]);
    expect([...absorbIntoOutput(dims, kvBProj, [5, 7])]).toEqual([0, 0, 5, 0, 0, 14]);
  });

  it("name the matrix that does not fit", () => {
    expect(() => absorbIntoQueries(dims, [1, 2, 3, 4], new Float32Array(18))).toThrow(
      "qBProj must have 6 rows, got 4 elements",
    );
    expect(() => absorbIntoQueries(dims, [1, 2, 3, 4, 5, 6], new Float32Array(17))).toThrow(
      "kvBProj must have 6 rows of 3, got 17 elements",
    );
    expect(() => absorbIntoOutput(dims, new Float32Array(18), [1])).toThrow(
      "oProj must have 2 columns, got 1 elements",
    );
  });
});

/** The normed low-rank query: [tokens, q rank]. */
function queryLatent(spec: MlaModuleSpec, weights: MlaModuleWeights, hidden: Float32Array): Float32Array {
  const norm = weights.qLowRank?.norm ?? [];
  const rank = norm.length;
  const x = matmul({ weight: weights.qProj, rows: rank, columns: spec.hiddenSize, x: hidden });
  return Float32Array.from(x, (value, i) => {
    const row = x.subarray(Math.floor(i / rank) * rank, (Math.floor(i / rank) + 1) * rank);
    const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / rank + spec.normEps);
    return value * scale * norm[i % rank];
  });
}
