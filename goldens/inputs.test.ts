import { describe, expect, it } from "vitest";
import { compare } from "./compare.ts";
import { makeInput, roundTo } from "./inputs.ts";

describe("golden inputs", () => {
  it.each([
    ["f16", 1 + 2 ** -11, 1],
    ["f16", 1 + 3 * 2 ** -11, 1 + 2 ** -9],
    ["f16", 65520, Infinity],
    ["f16", 2 ** -25, 0],
    ["f16", -1.5 * 2 ** -24, -2 * 2 ** -24],
    ["bf16", 1 + 2 ** -8, 1],
    ["f8_e4m3", -449, -448],
    ["f8_e4m3", Infinity, 448],
    ["f8_e5m2", 1e9, 57344],
    ["f32", 0.1, Math.fround(0.1)],
    ["f64", 0.1, 0.1],
  ])("rounds to %s: %f gives %f", (dtype, value, expected) => {
    expect(roundTo(dtype, value)).toBe(expected);
  });

  it("casts first, then edits, then asks what is not zero", () => {
    const recipe = { shape: [2, 2], dtype: "f8_e4m3", values: [0, 1000, 0.25, "nan"] as const };
    expect([...makeInput(recipe)]).toEqual([0, 448, 0.25, Number.NaN]);
    const edited = { ...recipe, edits: [{ index: [[1, 2]] as [number, number][], value: -449 }] };
    expect([...makeInput(edited)]).toEqual([0, 448, -448, -448]);
    expect([...makeInput({ ...edited, nonzero: true })]).toEqual([0, 1, 1, 1]);
  });

  it("divides integers", () => {
    expect([...makeInput({ shape: [3], dtype: "f32", seed: 3, low: 0, high: 100, div: 8 })]).toEqual([5, 3.25, 10]);
  });
});

describe("comparison", () => {
  const tolerance = { atol: 0.1, rtol: 0.1 };
  it("allows atol + rtol |want| and says how much of it was used", () => {
    expect(compare([1.1], [1], tolerance).worst).toBeCloseTo(0.5);
    expect(compare([1.3], [1], tolerance).failure).toBe("1 of 1 wrong, worst at element 0: 1.3, expected 1");
  });
  it("wants NaN for NaN and the same infinity", () => {
    expect(compare([Number.NaN, -Infinity], [Number.NaN, -Infinity], tolerance)).toEqual({ worst: 0 });
    expect(compare([0], [Number.NaN], tolerance).failure).toBeDefined();
    expect(compare([Number.NaN], [0], tolerance).failure).toBeDefined();
    expect(compare([Infinity], [-Infinity], tolerance).failure).toBeDefined();
    expect(compare([0], [Infinity], tolerance).failure).toBeDefined();
  });
  it("takes 0 / 0 as exact, and the listed rows of the full output", () => {
    expect(compare([1 + 2 ** -52], [1], { atol: 0, rtol: 0 }).worst).toBe(Infinity);
    const rows = { rows: [0, 2], rowSize: 2 };
    expect(compare([1, 2, 9, 9, 5, 6], [1, 2, 5, 6], tolerance, rows)).toEqual({ worst: 0 });
    expect(compare([1, 2, 9, 9, 5, 0], [1, 2, 5, 6], tolerance, rows).failure).toContain(
      "row 2 column 1: 0, expected 6",
    );
  });
});
