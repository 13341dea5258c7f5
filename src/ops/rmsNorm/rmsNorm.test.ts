import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { type RmsNormSpec, recordRmsNorm, rmsNorm } from "./index.ts";

/**
 * Each element passes through 2 or 3 roundings of its own and 4 of the scale (6e-8 each at most), and the relative error of the sum, in chains of
 * dim / 16 roundings of either sign, is halved by the root: 4e-7 if all went one way, and 2.4e-7 is what random rows show.
 */
const tolerance = { relative: 6e-7, absolute: 1e-30 };

const dims = [1, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 72, 100, 127, 640, 2048, 4099];

describe("rmsNorm by its definition", () => {
  it("makes the mean square 1", () => {
    const out = rmsNorm({ dim: 2, eps: 0, weightOffset: 0 }, [3, 4, 6, 8], [1, 1]);
    expect([...out]).toEqual([3, 4, 6, 8].map((x, i) => x / (i < 2 ? Math.sqrt(12.5) : Math.sqrt(50))));
  });

  it("adds the weight offset, eps and the residual where the formula has them", () => {
    const out = rmsNorm({ dim: 1, eps: 5, weightOffset: 1 }, [2], [0.5], [10]);
    expect(out[0]).toBe(10 + (2 / 3) * 1.5);
  });
});

describe.each(Object.entries(testDevices))("rmsNorm on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(dims)("equals the reference for dim %i", async (dim) => {
    const numRows = dim > 1000 ? 3 : 37;
    const values = normals(numRows * dim, dim);
    const weights = normals(dim, 1);
    const added = normals(numRows * dim, 2);
    const weight = test.f32([dim], weights);
    for (const weightOffset of [0, 1] as const) {
      for (const residual of ["none", "add"] as const) {
        const spec: RmsNormSpec = { dim, eps: 1e-6, weightOffset, residual };
        const x = test.f32([numRows, dim], values);
        const out = test.f32([numRows, dim], new Float32Array(numRows * dim));
        const residualTensor = residual === "add" ? { residual: test.f32([numRows, dim], added) } : {};
        await test.run((recorder) => recordRmsNorm(recorder, spec, { x, weight, out, ...residualTensor }));
        const expected = rmsNorm(spec, values, weights, residual === "add" ? added : undefined);
        // With a residual the sum can cancel, so its error is measured against the terms: both are of order 1.
        const allowed = residual === "add" ? { relative: 6e-7, absolute: 3e-6 } : tolerance;
        expect(worstError(test.readF32(out), expected, allowed)).toBeLessThan(1);
      }
    }
  });

  it("works in place, on x and on the residual", async () => {
    const spec: RmsNormSpec = { dim: 70, eps: 1e-5, weightOffset: 0, residual: "add" };
    const [values, weights, added] = [normals(5 * 70, 1), normals(70, 2), normals(5 * 70, 3)];
    const weight = test.f32([70], weights);
    const x = test.f32([5, 70], values);
    const residual = test.f32([5, 70], added);
    const apart = test.f32([5, 70], new Float32Array(5 * 70));
    await test.run((recorder) => {
      recordRmsNorm(recorder, spec, { x, weight, residual, out: apart });
      recordRmsNorm(recorder, spec, { x, weight, residual, out: residual });
      recordRmsNorm(recorder, { ...spec, residual: "none" }, { x, weight, out: x });
    });
    expect(bitsOf(test.readF32(residual))).toEqual(bitsOf(test.readF32(apart)));
    const normed = rmsNorm(spec, values, weights);
    expect(worstError(test.readF32(x), normed, tolerance)).toBeLessThan(1);
  });

  it("normalises the heads of some columns of a packed matrix, and leaves the others alone", async () => {
    const [numRows, stride, first, numHeads, dim] = [6, 50, 8, 3, 12];
    const values = normals(numRows * stride, 9);
    const weights = normals(dim, 4);
    const packed = test.f32([numRows, stride], values);
    const heads = {
      ...packed,
      pointer: packed.pointer + first * 4,
      shape: [numRows, numHeads, dim],
      rowStride: stride,
    };
    const spec: RmsNormSpec = { dim, eps: 1e-6, weightOffset: 0, residual: "none", numHeads };
    await test.run((recorder) => {
      recordRmsNorm(recorder, spec, { x: heads, weight: test.f32([dim], weights), out: heads });
    });
    const expected = Float64Array.from(values);
    for (let row = 0; row < numRows; row++) {
      const at = row * stride + first;
      expected.set(rmsNorm(spec, values.subarray(at, at + numHeads * dim), weights), at);
    }
    expect(worstError(test.readF32(packed), expected, tolerance)).toBeLessThan(1);
  });

  it("gives a row the same bits alone and among others", async () => {
    const [numRows, dim] = [64, 643];
    const spec: RmsNormSpec = { dim, eps: 1e-6, weightOffset: 1, residual: "none" };
    const values = normals(numRows * dim, 5);
    const weight = test.f32([dim], normals(dim, 6));
    const x = test.f32([numRows, dim], values);
    const out = test.f32([numRows, dim], values);
    await test.run((recorder) => recordRmsNorm(recorder, spec, { x, weight, out }));
    const together = bitsOf(test.readF32(out));
    for (const row of [0, 31, 63]) {
      const alone = test.f32([1, dim], values.subarray(row * dim, (row + 1) * dim));
      await test.run((recorder) => recordRmsNorm(recorder, spec, { x: alone, weight, out: alone }));
      expect(bitsOf(test.readF32(alone))).toEqual(together.subarray(row * dim, (row + 1) * dim));
    }
  });

  it("records nothing for no rows", async () => {
    const spec: RmsNormSpec = { dim: 4, eps: 0, weightOffset: 0, residual: "none" };
    const x = test.f32([1, 4], [1, 2, 3, 4]);
    await test.run((recorder) =>
      recordRmsNorm(recorder, spec, { x, weight: test.f32([4], [1, 1, 1, 1]), out: x, numRows: 0 }),
    );
    expect([...test.readF32(x)]).toEqual([1, 2, 3, 4]);
  });

  it("names what is wrong", async () => {
    const spec: RmsNormSpec = { dim: 64, eps: 1e-6, weightOffset: 0, residual: "none" };
    const x = test.f32([2, 64], new Float32Array(128));
    const weight = test.f32([64], new Float32Array(64));
    const record = (changedSpec: Partial<RmsNormSpec>, changedArgs: object) => () =>
      test.run((recorder) =>
        recordRmsNorm(recorder, { ...spec, ...changedSpec }, { x, weight, out: x, ...changedArgs }),
      );
    await expect(record({}, { weight: { ...weight, shape: [63] } })).rejects.toThrow(
      "weight must have shape [64], got [63]",
    );
    await expect(record({}, { x: { ...x, shape: [2, 63] } })).rejects.toThrow(
      "x must have rows of 64 elements, got shape [2, 63]",
    );
    await expect(record({}, { numRows: 3 })).rejects.toThrow("x must have at least 3 rows, got shape [2, 64]");
    await expect(record({}, { numRows: -1 })).rejects.toThrow("numRows must be a whole number of at least 0, got -1");
    await expect(record({}, { x: { ...x, rowStride: 32 } })).rejects.toThrow(
      "x.rowStride must be 0 or an integer of at least 64, got 32",
    );
    await expect(record({}, { out: { ...x, rowStride: 0 } })).rejects.toThrow("out.rowStride must be at least 64");
    await expect(record({}, { x: { ...x, type: "f16" } })).rejects.toThrow("x must be of type f32, got f16");
    await expect(record({ eps: -1 }, {})).rejects.toThrow("eps must be a finite number of at least 0, got -1");
    await expect(record({ dim: 0 }, {})).rejects.toThrow("dim must be a whole number of at least 1, got 0");
    await expect(record({ residual: "add" }, {})).rejects.toThrow('it is "add", none was given');
    await expect(record({}, { residual: x })).rejects.toThrow('it is "none", one was given');
  });
});

it("gives the same bits on any number of threads", async () => {
  const [numRows, dim] = [100, 257];
  const spec: RmsNormSpec = { dim, eps: 1e-6, weightOffset: 0, residual: "none" };
  const results = await Promise.all(
    [1, 2, 3].map(async (threads) => {
      const test = await TestDevice.create({ threads });
      const x = test.f32([numRows, dim], normals(numRows * dim, 1));
      await test.run((recorder) =>
        recordRmsNorm(recorder, spec, { x, weight: test.f32([dim], normals(dim, 2)), out: x }),
      );
      const bits = bitsOf(test.readF32(x));
      await test.close();
      return bits;
    }),
  );
  for (const bits of results) expect(bits).toEqual(results[0]);
});
