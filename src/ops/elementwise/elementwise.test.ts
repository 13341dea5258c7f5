import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { add, addBias, multiply, recordAdd, recordAddBias, recordMultiply, recordScale, scale } from "./index.ts";

/** One correctly rounded operation: the reference rounded once is the same number. */
const rounded = (values: Float64Array): Uint32Array => bitsOf(Float32Array.from(values));

const shapes = [
  [1, 1],
  [3, 5],
  [2, 16],
  [50, 33],
  [7, 2048],
  [2, 4099],
] as const;

describe("element-wise operations by their definitions", () => {
  it("add, multiply, add a bias to every row, scale", () => {
    expect([...add([1, 2], [10, 20])]).toEqual([11, 22]);
    expect([...multiply([1, 2], [10, 20])]).toEqual([10, 40]);
    expect([...addBias([1, 2, 3, 4], [10, 20])]).toEqual([11, 22, 13, 24]);
    expect([...scale([1, 2], 0.5)]).toEqual([0.5, 1]);
  });
});

describe.each(Object.entries(testDevices))("element-wise operations on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(shapes)("equal the reference for %i rows of %i, in place too", async (numRows, n) => {
    const [xs, ys, biases] = [normals(numRows * n, 1), normals(numRows * n, 2), normals(n, 3)];
    const x = test.f32([numRows, n], xs);
    const y = test.f32([numRows, n], ys);
    const bias = test.f32([n], biases);
    const [sum, product, biased, scaled] = [1, 2, 3, 4].map(() =>
      test.f32([numRows, n], new Float32Array(numRows * n)),
    );
    const factor = Math.sqrt(640);
    await test.run((recorder) => {
      recordAdd(recorder, { x, y, out: sum });
      recordMultiply(recorder, { x, y, out: product });
      recordAddBias(recorder, { x, bias, out: biased });
      recordScale(recorder, { x, factor, out: scaled });
      recordAdd(recorder, { x, y, out: y });
      recordAddBias(recorder, { x, bias, out: x });
    });
    expect(bitsOf(test.readF32(sum))).toEqual(rounded(add(xs, ys)));
    expect(bitsOf(test.readF32(product))).toEqual(rounded(multiply(xs, ys)));
    expect(bitsOf(test.readF32(biased))).toEqual(rounded(addBias(xs, biases)));
    expect(bitsOf(test.readF32(scaled))).toEqual(rounded(scale(xs, Math.fround(factor))));
    expect(bitsOf(test.readF32(y))).toEqual(rounded(add(xs, ys)));
    expect(bitsOf(test.readF32(x))).toEqual(rounded(addBias(xs, biases)));
  });

  it("touch only the rows and columns they are given", async () => {
    const [numRows, stride, first, n] = [5, 11, 3, 6];
    const values = normals(numRows * stride, 1);
    const biases = normals(n, 2);
    const packed = test.f32([numRows, stride], values);
    const columns = { ...packed, pointer: packed.pointer + first * 4, shape: [numRows, n], rowStride: stride };
    await test.run((recorder) =>
      recordAddBias(recorder, { x: columns, bias: test.f32([n], biases), out: columns, numRows: 4 }),
    );
    const expected = values.map((value, i) => {
      const [row, column] = [Math.floor(i / stride), (i % stride) - first];
      return row < 4 && column >= 0 && column < n ? value + biases[column] : value;
    });
    expect(bitsOf(test.readF32(packed))).toEqual(bitsOf(expected));
  });

  it("name what is wrong", async () => {
    const x = test.f32([2, 4], new Float32Array(8));
    const bias = test.f32([4], new Float32Array(4));
    const run = (record: Parameters<TestDevice["run"]>[0]): Promise<void> => test.run(record);
    await expect(run((r) => recordAddBias(r, { x, bias: { ...bias, shape: [3] }, out: x }))).rejects.toThrow(
      "bias must have shape [4], got [3]",
    );
    await expect(run((r) => recordAdd(r, { x, y: { ...x, shape: [2, 5] }, out: x }))).rejects.toThrow(
      "y must have rows of 4 elements, got shape [2, 5]",
    );
    await expect(run((r) => recordAdd(r, { x, y: { ...x, shape: [1, 4] }, out: x }))).rejects.toThrow(
      "y must have at least 2 rows, got shape [1, 4]",
    );
    await expect(run((r) => recordScale(r, { x, factor: 1, out: { ...x, pointer: x.pointer + 2 } }))).rejects.toThrow(
      "out.pointer must be a multiple of 4",
    );
  });
});
