import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { type HeadProjectionSpec, headProjection, recordHeadProjection } from "./index.ts";

describe("headProjection by its definition", () => {
  // Head 0 has rows 0 and 1 of the weight as its matrix, head 1 rows 3 and 4; row 2 belongs to nobody.
  const weight = [1, 2, 3, 4, NaN, NaN, 5, 6, 7, 8];

  it("multiplies from the left to absorb", () => {
    const out = headProjection({ kind: "absorb", rows: 2, columns: 2 }, 2, [1, 10, 1, 10], weight, 0, 3);
    expect([...out]).toEqual([31, 42, 75, 86]);
  });

  it("multiplies from the right to expand", () => {
    const out = headProjection({ kind: "expand", rows: 2, columns: 2 }, 2, [1, 10, 1, 10], weight, 0, 3);
    expect([...out]).toEqual([21, 43, 65, 87]);
  });
});

/** rows, columns, heads, tokens */
const sizes = [
  [1, 1, 1, 1],
  [3, 5, 2, 2],
  [8, 4, 9, 3],
  [24, 64, 3, 17],
  [17, 33, 5, 9],
  [64, 256, 40, 1],
  [128, 512, 2, 5],
  [30, 70, 1, 130],
] as const;

describe.each(Object.entries(testDevices))("headProjection on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  for (const kind of ["absorb", "expand"] as const) {
    it.each(sizes)(
      `${kind}s as the reference does: %i x %i, %i heads, %i tokens`,
      async (rows, columns, heads, tokens) => {
        const spec: HeadProjectionSpec = { kind, rows, columns };
        const [inputs, outputs] = kind === "absorb" ? [rows, columns] : [columns, rows];
        // Heads lie as in kv_b_proj: rows of another matrix, NaN here, follow those of each head.
        const [firstRow, headRows] = [2, rows + 3];
        const values = normals((firstRow + heads * headRows) * columns, rows).map((value) => value / Math.sqrt(inputs));
        for (let row = 0; row < firstRow + heads * headRows; row++) {
          const at = (row - firstRow + headRows) % headRows;
          if (row < firstRow || at >= rows) values.fill(NaN, row * columns, (row + 1) * columns);
        }
        const xs = normals(tokens * heads * inputs, columns);
        const weight = test.f32([firstRow + heads * headRows, columns], values);
        const x = test.f32([tokens, heads, inputs], xs);
        const out = test.f32([tokens, heads, outputs], new Float32Array(tokens * heads * outputs).fill(NaN));
        await test.run((recorder) => recordHeadProjection(recorder, spec, { x, weight, firstRow, headRows, out }));
        const expected = headProjection(spec, heads, xs, values, firstRow, headRows);
        expect(worstError(test.readF32(out), expected, { relative: 2e-6, absolute: 2e-6 })).toBeLessThan(1);
      },
    );
  }

  it("reads and writes channels of packed rows, and leaves the others alone", async () => {
    const [heads, tokens, rows, columns, rope] = [3, 11, 6, 10, 4];
    const values = normals(heads * rows * columns, 1);
    const weight = test.f32([heads * rows, columns], values);
    const packed = normals(tokens * heads * (rows + rope), 2);
    const x = test.f32([tokens, heads, rows], packed);
    const before = new Float32Array(tokens * (heads * (columns + rope) + 5)).fill(-77);
    const out = test.f32([tokens, heads, columns], before);
    await test.run((recorder) =>
      recordHeadProjection(
        recorder,
        { kind: "absorb", rows, columns },
        {
          x: { ...x, rowStride: heads * (rows + rope), headStride: rows + rope },
          weight,
          out: { ...out, rowStride: heads * (columns + rope) + 5, headStride: columns + rope },
        },
      ),
    );
    const inner = packed.filter((_, i) => i % (rows + rope) < rows);
    const expected = headProjection({ kind: "absorb", rows, columns }, heads, inner, values);
    const wide = Float64Array.from(before);
    for (let vector = 0; vector < tokens * heads; vector++) {
      const at = Math.floor(vector / heads) * (heads * (columns + rope) + 5) + (vector % heads) * (columns + rope);
      wide.set(expected.subarray(vector * columns, (vector + 1) * columns), at);
    }
    expect(worstError(test.readF32(out), wide, { relative: 1e-5, absolute: 1e-5 })).toBeLessThan(1);
  });

  it("gives every head the same vector where the head stride is 0", async () => {
    const [heads, tokens, rows, columns] = [4, 7, 5, 12];
    const spec: HeadProjectionSpec = { kind: "expand", rows, columns };
    const [values, latents] = [normals(heads * rows * columns, 3), normals(tokens * columns, 4)];
    const weight = test.f32([heads * rows, columns], values);
    const x = { ...test.f32([tokens, heads, columns], latents), headStride: 0 };
    const out = test.f32([tokens, heads, rows], new Float32Array(tokens * heads * rows));
    await test.run((recorder) => recordHeadProjection(recorder, spec, { x, weight, out }));
    const repeated = Float32Array.from({ length: tokens * heads * columns }, (_, i) => {
      return latents[Math.floor(i / (heads * columns)) * columns + (i % columns)];
    });
    const expected = headProjection(spec, heads, repeated, values);
    expect(worstError(test.readF32(out), expected, { relative: 1e-5, absolute: 1e-5 })).toBeLessThan(1);
  });

  it.each(["absorb", "expand"] as const)("gives a token the same bits alone and among others: %s", async (kind) => {
    const [heads, tokens, rows, columns] = [2, 67, 20, 70];
    const [inputs, outputs] = kind === "absorb" ? [rows, columns] : [columns, rows];
    const spec: HeadProjectionSpec = { kind, rows, columns };
    const weight = test.f32([heads * rows, columns], normals(heads * rows * columns, 5));
    const xs = normals(tokens * heads * inputs, 6);
    const x = test.f32([tokens, heads, inputs], xs);
    const out = test.f32([tokens, heads, outputs], new Float32Array(tokens * heads * outputs));
    const one = test.f32([1, heads, outputs], new Float32Array(heads * outputs));
    await test.run((recorder) => recordHeadProjection(recorder, spec, { x, weight, out }));
    for (const token of [0, 1, 66]) {
      const alone = { ...x, pointer: x.pointer + token * heads * inputs * 4, shape: [1, heads, inputs] };
      await test.run((recorder) => recordHeadProjection(recorder, spec, { x: alone, weight, out: one }));
      const among = test.readF32(out).subarray(token * heads * outputs, (token + 1) * heads * outputs);
      expect(bitsOf(test.readF32(one))).toEqual(bitsOf(among));
    }
  });

  it("names what is wrong", async () => {
    const spec: HeadProjectionSpec = { kind: "absorb", rows: 4, columns: 8 };
    const x = test.f32([2, 3, 4], new Float32Array(24));
    const out = test.f32([2, 3, 8], new Float32Array(48));
    const weight = test.f32([12, 8], new Float32Array(96));
    const record = (changedSpec: object, changed: object) => () =>
      test.run((recorder) =>
        recordHeadProjection(recorder, { ...spec, ...changedSpec }, { x, weight, out, ...changed }),
      );
    await expect(record({ rows: 0 }, {})).rejects.toThrow("rows must be a whole number of at least 1, got 0");
    await expect(record({}, { weight: { ...weight, shape: [11, 8] } })).rejects.toThrow(
      "weight must have 8 columns and at least 12 rows for 3 heads, got shape [11, 8]",
    );
    await expect(record({}, { firstRow: 1 })).rejects.toThrow("at least 13 rows");
    await expect(record({}, { headRows: -4 })).rejects.toThrow("headRows must be a whole number of rows, got -4");
    await expect(record({}, { weight: { ...weight, type: "f16" } })).rejects.toThrow("weight must be of type f32");
    await expect(record({}, { x: { ...x, shape: [2, 3, 5] } })).rejects.toThrow(
      "x must have shape [at least 2, 3, 4], got [2, 3, 5]",
    );
    await expect(record({}, { x: { ...x, headStride: 3 } })).rejects.toThrow(
      "x.headStride must be 0 or an integer of at least 4, got 3",
    );
    await expect(record({}, { x: { ...x, rowStride: 11 } })).rejects.toThrow(
      "x.rowStride must be an integer of at least 12, got 11",
    );
    await expect(record({}, { out: { ...out, headStride: 0 } })).rejects.toThrow(
      "out.headStride must be at least 8 because its heads are written, got 0",
    );
    await expect(record({}, { x: { ...x, type: "f16" } })).rejects.toThrow("x must be of type f32, got f16");
    await expect(record({}, { out: { ...out, pointer: out.pointer + 2 } })).rejects.toThrow(
      `out.pointer must be a multiple of 4, got ${out.pointer + 2}`,
    );
    await expect(record({}, { numTokens: 3 })).rejects.toThrow("x must have shape [at least 3, 3, 4]");
  });
});

it("gives the same bits on any number of threads", async () => {
  const [heads, tokens, rows, columns] = [2, 5, 40, 200];
  const results = await Promise.all(
    [1, 3].map(async (threads) => {
      const test = await TestDevice.create({ threads });
      const x = test.f32([tokens, heads, rows], normals(tokens * heads * rows, 1));
      const weight = test.f32([heads * rows, columns], normals(heads * rows * columns, 2));
      const out = test.f32([tokens, heads, columns], new Float32Array(tokens * heads * columns));
      await test.run((recorder) =>
        recordHeadProjection(recorder, { kind: "absorb", rows, columns }, { x, weight, out }),
      );
      const bits = bitsOf(test.readF32(out));
      await test.close();
      return bits;
    }),
  );
  expect(results[1]).toEqual(results[0]);
});
