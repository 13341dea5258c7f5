import { describe, expect, it } from "vitest";
import { weightTypes } from "../../tensor/index.ts";
import { arithmeticFor, checkMatmul, checkWeightShape, type MatmulArgs, type WeightMatrix } from "./contract.ts";

const weight: WeightMatrix = {
  name: "up",
  type: "Q4_K",
  rows: 48,
  columns: 256,
  pointer: 64,
  numBytes: 48 * 144,
  arithmetic: "i8",
};
const args: MatmulArgs = { weight, activations: 64, out: 128, numTokens: 3 };

describe("a matrix product", () => {
  it("of what fits is accepted", () => {
    expect(() => checkMatmul(args)).not.toThrow();
    expect(() => checkMatmul({ ...args, numTokens: 0, outStride: 48, bias: 64 })).not.toThrow();
  });

  it.each<[Partial<MatmulArgs>, string]>([
    [{ numTokens: -1 }, "numTokens must be a whole number, got -1"],
    [{ numTokens: 1.5 }, "numTokens must be a whole number, got 1.5"],
    [{ outStride: 47 }, "outStride must be at least the 48 rows of up, got 47"],
    [{ outStride: NaN }, "outStride must be at least the 48 rows of up, got NaN"],
    [{ activations: 0 }, "activations of up were not prepared for i8 arithmetic"],
    [{ out: 0 }, "out of up must be an address, got 0"],
    [{ bias: 0 }, "bias of up must be an address or left out, got 0"],
  ])("with %o is refused", (change, message) => {
    expect(() => checkMatmul({ ...args, ...change })).toThrow(message);
  });
});

describe("weights", () => {
  it.each([
    [0, 256, "up must have a positive number of rows and columns, got [0, 256]"],
    [4, -256, "up must have a positive number of rows and columns, got [4, -256]"],
    [4, 288, "up must have a multiple of 256 columns to be Q4_K, got 288"],
  ])("of %i rows and %i columns are refused", (rows, columns, message) => {
    expect(() => checkWeightShape("up", "Q4_K", rows, columns)).toThrow(message);
  });

  it("are multiplied in the arithmetic that their bits allow", () => {
    const chosen = (precision: "f32" | "int8" | "int16"): Record<string, string> =>
      Object.fromEntries(weightTypes.map((type) => [type, arithmeticFor(type, precision)]));
    expect(new Set(Object.values(chosen("f32")))).toEqual(new Set(["f32"]));
    expect(chosen("int8")).toMatchObject({
      F32: "f32",
      F16: "f32",
      BF16: "f32",
      Q8_0: "i16",
      IQ4_XS: "i16",
      Q6_K: "i8",
    });
    expect(chosen("int16")).toMatchObject({
      F32: "f32",
      F16: "f32",
      BF16: "f32",
      Q8_0: "i16",
      Q4_0: "i16",
      Q6_K: "i16",
    });
  });
});
