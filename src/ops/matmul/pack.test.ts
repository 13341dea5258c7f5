import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { packed, randomWeights, type StoredMatrix } from "../../../test/matmul/weights.ts";
import { TestDevice } from "../../../test/ops/testDevice.ts";
import { type WeightType, weightBytes, weightTypes } from "../../tensor/index.ts";
import { allocateWeightMatrix, recordPackRows, type WeightMatrix } from "./index.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

function storedMatrix(type: WeightType, rows: number, columns: number): StoredMatrix {
  return { type, rows, columns, precision: "f32", bytes: randomWeights(type, rows * columns, 11) };
}
const contents = ({ pointer, numBytes }: WeightMatrix): Uint8Array => test.device.u8At(pointer, numBytes).slice();
const sameBytes = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, i) => byte === b[i]);

describe.each(weightTypes)("packed weights of %s", (type) => {
  const columns = 256;

  it("have the file's size, and that of the rows that fill up the last 16", async () => {
    for (const [rows, padded] of [
      [16, 16],
      [1, 16],
      [48, 48],
      [49, 64],
    ]) {
      const weight = await packed(test, storedMatrix(type, rows, columns));
      expect(weight.numBytes).toBe(weightBytes(type, padded * columns));
    }
  });

  it("are the same bytes packed at once or in chunks", async () => {
    const stored = storedMatrix(type, 37, columns);
    const atOnce = contents(await packed(test, stored));
    for (const starts of [
      [0, 16, 32],
      [0, 32],
    ]) {
      expect(sameBytes(contents(await packed(test, stored, starts)), atOnce)).toBe(true);
    }
  });

  it("hold each byte of the file once, and zeros", async () => {
    // Bits of weights may move to other bytes, but none is lost: the number of set bits stays.
    const setBits = (bytes: Uint8Array): number =>
      bytes.reduce((sum, byte) => sum + [...byte.toString(2)].filter((digit) => digit === "1").length, 0);
    const stored = storedMatrix(type, 18, columns);
    expect(setBits(contents(await packed(test, stored)))).toBe(setBits(stored.bytes));
  });
});

describe("packing refuses", () => {
  it.each([
    [0, 64, "matrix must have a positive number of rows and columns, got [0, 64]"],
    [4, 2.5, "matrix must have a positive number of rows and columns, got [4, 2.5]"],
    [4, 33, "matrix must have a multiple of 32 columns to be Q8_0, got 33"],
  ])("a matrix of %d rows and %d columns", (rows, columns, message) => {
    const options = { name: "matrix", type: "Q8_0", rows, columns, precision: "f32" } as const;
    expect(() => allocateWeightMatrix(test.device, options)).toThrow(message);
  });

  it("rows that begin inside a group of panels", async () => {
    const weight = await packed(test, storedMatrix("F32", 8, 4));
    await test.run((recorder) => {
      expect(() => recordPackRows(recorder, weight, weight.pointer, 2, 4)).toThrow("firstRow must be a multiple of 16");
    });
  });
});
