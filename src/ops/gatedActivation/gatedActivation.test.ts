import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { type Activation, activations, gatedActivation, recordGatedActivation, splitGateUp } from "./index.ts";
import { normalCdf, scaledErfc, scaledErfcCoefficients } from "./normalDistribution.ts";

const names: readonly Activation[] = ["silu", "geluTanh", "geluErf", "relu"];

/** A few roundings of 6e-8 each. */
const tolerance = { relative: 1e-6, absolute: 1e-30 };

/**
 * Far left the roundings of the exponential's argument (25 for geluTanh and 18 for geluErf at -6, where both are of order 1e-9) grow with it: each
 * costs 6e-8 times the argument.
 */
const ranges: readonly [Activation, least: number, relative: number][] = [
  ["silu", -10, 1e-6],
  ["geluTanh", -3, 1e-6],
  ["geluTanh", -6, 3 * 25 * 6e-8 + 1e-6],
  ["geluErf", -3, 1e-6],
  ["geluErf", -6, 2 * 18 * 6e-8 + 1e-6],
  ["relu", -10, 1e-7],
];

describe("gated activations by their definitions", () => {
  it("have the values of published tables", () => {
    // erfc(1) = 0.157299207050285, erfc(3) = 2.209049699858544e-5 (Abramowitz & Stegun, table 7.1)
    expect(scaledErfc(1) * Math.exp(-1)).toBeCloseTo(0.157299207050285, 14);
    expect((scaledErfc(3) * Math.exp(-9)) / 2.209049699858544e-5).toBeCloseTo(1, 13);
    expect(normalCdf(1.959963984540054)).toBeCloseTo(0.975, 14);
    expect(normalCdf(-1.959963984540054)).toBeCloseTo(0.025, 14);
    expect(activations.silu(2)).toBeCloseTo(2 / (1 + Math.exp(-2)), 15);
    expect(activations.geluTanh(1)).toBeCloseTo(0.841192, 6);
    expect(activations.relu(-1)).toBe(0);
  });

  it("fit the complementary error function to better than f32", () => {
    const coefficients = scaledErfcCoefficients();
    for (let z = 0; z < 10; z += 0.01) {
      const t = 1 / (1 + z / 2);
      const fitted = t * coefficients.reduceRight((sum, c) => sum * (2 * t - 1) + c, 0);
      expect(Math.abs(fitted / scaledErfc(z) - 1)).toBeLessThan(1.5e-8);
    }
  });

  it("multiply the activated gate with up", () => {
    expect([...gatedActivation({ activation: "relu" }, [2, -3], [5, 7])]).toEqual([10, 0]);
  });
});

describe.each(Object.entries(testDevices))("gatedActivation on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(ranges)("equals the reference for %s from %d to 10 within %d", async (activation, least, relative) => {
    const gateValues = Float32Array.from({ length: 4001 }, (_, i) => least + ((10 - least) * i) / 4000);
    const upValues = normals(gateValues.length, 1);
    const shape = [1, gateValues.length];
    const gate = test.f32(shape, gateValues);
    const out = test.f32(shape, gateValues);
    await test.run((recorder) => {
      recordGatedActivation(recorder, { activation }, { gate, up: test.f32(shape, upValues), out });
    });
    const expected = gatedActivation({ activation }, gateValues, upValues);
    expect(worstError(test.readF32(out), expected, { relative, absolute: 1e-30 })).toBeLessThan(1);
  });

  it.each(names)("is finite for %s far out", async (activation) => {
    const values = Float32Array.of(-1e4, -200, -90, -50, 0, 50, 90, 200, 1e4);
    const gate = test.f32([1, 9], values);
    const up = test.f32([1, 9], new Float32Array(9).fill(1));
    await test.run((recorder) => recordGatedActivation(recorder, { activation }, { gate, up, out: gate }));
    const out = test.readF32(gate);
    expect(out.subarray(4)).toEqual(values.subarray(4));
    for (const value of out.subarray(0, 4)) expect(Math.abs(value)).toBeLessThan(1e-19);
  });

  it.each([1, 3, 8, 31, 2048, 2053])("splits packed rows of 2 x %i", async (n) => {
    const numRows = 5;
    const values = normals(numRows * 2 * n, n);
    const packed = test.f32([numRows, 2 * n], values);
    const out = test.f32([numRows, n], new Float32Array(numRows * n));
    await test.run((recorder) =>
      recordGatedActivation(recorder, { activation: "silu" }, { ...splitGateUp(packed), out }),
    );
    const half = (first: number): Float32Array =>
      Float32Array.from({ length: numRows * n }, (_, i) => values[Math.floor(i / n) * 2 * n + first + (i % n)]);
    const expected = gatedActivation({ activation: "silu" }, half(0), half(n));
    expect(worstError(test.readF32(out), expected, tolerance)).toBeLessThan(1);
  });

  it("gives a row the same bits alone and among others, in place or not", async () => {
    const [numRows, n] = [9, 2051];
    const gateValues = normals(numRows * n, 1);
    const upValues = normals(numRows * n, 2);
    const gate = test.f32([numRows, n], gateValues);
    const up = test.f32([numRows, n], upValues);
    await test.run((recorder) => recordGatedActivation(recorder, { activation: "geluTanh" }, { gate, up, out: up }));
    const together = bitsOf(test.readF32(up));
    const aloneGate = test.f32([1, n], gateValues.subarray(4 * n, 5 * n));
    const aloneUp = test.f32([1, n], upValues.subarray(4 * n, 5 * n));
    await test.run((recorder) =>
      recordGatedActivation(recorder, { activation: "geluTanh" }, { gate: aloneGate, up: aloneUp, out: aloneGate }),
    );
    expect(bitsOf(test.readF32(aloneGate))).toEqual(together.subarray(4 * n, 5 * n));
  });

  it("names what is wrong", async () => {
    const gate = test.f32([2, 8], new Float32Array(16));
    const record = (changed: object) => () =>
      test.run((recorder) =>
        recordGatedActivation(recorder, { activation: "silu" }, { gate, up: gate, out: gate, ...changed }),
      );
    await expect(record({ up: { ...gate, shape: [2, 7] } })).rejects.toThrow(
      "up must have rows of 8 elements, got shape [2, 7]",
    );
    await expect(record({ out: { ...gate, shape: [1, 8] } })).rejects.toThrow(
      "out must have at least 2 rows, got shape [1, 8]",
    );
    expect(() => splitGateUp({ ...gate, shape: [2, 7] })).toThrow(
      "half the row length of packed must be a whole number",
    );
  });
});
