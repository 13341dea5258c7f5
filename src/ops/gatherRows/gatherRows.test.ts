import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { gatherRows, recordGatherRows } from "./index.ts";

describe("gatherRows by its definition", () => {
  it("takes rows in the order of the indices", () => {
    expect([...gatherRows([1, 2, 3, 4, 5, 6], 2, [2, 0, 2])]).toEqual([5, 6, 1, 2, 5, 6]);
  });
});

describe.each(Object.entries(testDevices))("gatherRows on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each([1, 3, 4, 5, 16, 71, 640])("equals the reference for %i columns, and writes no more", async (columns) => {
    const indices = [8, 0, 3, 3, 7, 1, 2, 8, 4];
    const values = normals(9 * columns, columns);
    values[0] = NaN;
    values[columns] = -0;
    const x = test.f32([9, columns], values);
    const rows = test.i32([indices.length], indices);
    const before = new Float32Array(indices.length * columns + 5).fill(-77);
    const out = test.f32([before.length], before);
    const args = { x: x.pointer, indices: rows.pointer, out: out.pointer, columns };
    await test.run((recorder) => recordGatherRows(recorder, { ...args, numRows: 0 }));
    expect(test.readF32(out)).toEqual(before);
    await test.run((recorder) => recordGatherRows(recorder, { ...args, numRows: indices.length }));
    const expected = Float32Array.of(...gatherRows(values, columns, indices), ...before.subarray(0, 5));
    expect(bitsOf(test.readF32(out))).toEqual(bitsOf(expected));
  });

  it("names what is wrong", async () => {
    const args = { x: 64, indices: 128, out: 192, columns: 4, numRows: 1 };
    await test.run((recorder) => {
      expect(() => recordGatherRows(recorder, { ...args, columns: 0 })).toThrow("columns must be a positive integer");
      expect(() => recordGatherRows(recorder, { ...args, numRows: 0.5 })).toThrow("numRows must be a whole number");
      expect(() => recordGatherRows(recorder, { ...args, out: 64 })).toThrow("out must not be x");
      expect(() => recordGatherRows(recorder, { ...args, indices: 0 })).toThrow("indices must be an address, got 0");
    });
  });
});
