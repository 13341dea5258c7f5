import { describe, expect, it } from "vitest";
import { featureSets, runKernel, type TestArray } from "../../test/kernels/runKernel.ts";
import {
  bf16ToF32 as bf16Value,
  e4m3ToF32,
  e5m2ToF32,
  f16ToF32 as f16Value,
  f32ToBf16 as toBf16,
  f32ToE4m3 as toE4m3,
  f32ToE5m2 as toE5m2,
  f32ToF16 as toF16,
} from "../tensor/index.ts";
import { defineKernel, type KernelBuilder } from "./builder.ts";
import {
  bf16ToF32,
  exp,
  exp2,
  f16ToF32,
  f32ToBf16,
  f32ToE4m3,
  f32ToE5m2,
  f32ToF16,
  finiteF16ToF32,
  log,
  scalar,
  sigmoid,
  tanh,
} from "./math.ts";
import type { Value } from "./value.ts";
import type { WasmFeatures } from "./wasm/features.ts";

const functions = {
  exp2,
  exp,
  log,
  tanh,
  sigmoid,
  f16ToF32: (k: KernelBuilder, x: Value<"f32v">) => f16ToF32(k, x.as("i32v")),
  finiteF16ToF32: (k: KernelBuilder, x: Value<"f32v">) => finiteF16ToF32(k, x.as("i32v")),
  bf16ToF32: (_k: KernelBuilder, x: Value<"f32v">) => bf16ToF32(x.as("i32v")),
  f32ToF16: (k: KernelBuilder, x: Value<"f32v">) => f32ToF16(k, x).as("f32v"),
  f32ToBf16: (k: KernelBuilder, x: Value<"f32v">) => f32ToBf16(k, x).as("f32v"),
  f32ToE4m3: (k: KernelBuilder, x: Value<"f32v">) => f32ToE4m3(k, x).as("f32v"),
  f32ToE5m2: (k: KernelBuilder, x: Value<"f32v">) => f32ToE5m2(k, x).as("f32v"),
} as const;

/** Applies a function to a vector for each task. */
const kernel = defineKernel({
  name: "function",
  params: { x: "pointer", out: "pointer" },
  build(k, name: keyof typeof functions, p) {
    k.forTasks((task) => {
      const offset = k.let(task.mul(k.lanes * 4));
      k.store("f32v", p.out.add(offset), functions[name](k, k.load("f32v", p.x.add(offset))));
    });
  },
});

function apply<A extends TestArray>(name: keyof typeof functions, x: TestArray, out: A, features: WasmFeatures): A {
  runKernel(kernel, name, { x, out }, { features, calls: [[0, x.length / 4]] });
  return out;
}

/** The code that a NaN with these bits becomes. */
function nanCode(name: "f32ToBf16" | "f32ToE4m3" | "f32ToE5m2", bits: number): number {
  if (name === "f32ToBf16") return ((bits >>> 16) | 0x40) & 0xffff;
  return ((bits >>> 24) & 0x80) | (name === "f32ToE4m3" ? 0x7f : 0x7e);
}

/** `length` numbers evenly from `from` to `to`, as f32. */
const range = (from: number, to: number, length = 1 << 13): Float32Array =>
  Float32Array.from({ length }, (_, i) => from + ((to - from) * i) / (length - 1));

/** Where two arrays differ, -0 from 0 and NaN from numbers told apart. */
function differences(got: TestArray, want: TestArray): string[] {
  const lines: string[] = [];
  got.forEach((value, i) => {
    if (!Object.is(value, want[i])) lines.push(`[${i}] ${value}, not ${want[i]}`);
  });
  return lines.slice(0, 10);
}

interface Errors {
  /** Largest |got - want| and largest |got - want| / |want|, and the same in units in the last place of the exact result. */
  readonly absolute: number;
  readonly relative: number;
  readonly ulps: number;
}

function errorsOf(got: Float32Array, x: Float32Array, exact: (x: number) => number): Errors {
  let [absolute, relative, ulps] = [0, 0, 0];
  got.forEach((value, i) => {
    const want = exact(x[i]);
    const error = Math.abs(value - want);
    if (Number.isNaN(error)) throw new Error(`f(${x[i]}) = ${value}, not ${want}`);
    absolute = Math.max(absolute, error);
    if (want !== 0) relative = Math.max(relative, error / Math.abs(want));
    ulps = Math.max(ulps, error / 2 ** Math.max(Math.floor(Math.log2(Math.abs(want))) - 23, -149));
  });
  return { absolute, relative, ulps };
}

describe.each(featureSets)("with %s", (_name, features) => {
  const errors = (name: keyof typeof functions, x: Float32Array, exact: (x: number) => number): Errors =>
    errorsOf(apply(name, x, new Float32Array(x.length), features), x, exact);
  const values = (name: keyof typeof functions, ...x: number[]): number[] => [
    ...apply(name, Float32Array.of(...x), new Float32Array(x.length), features),
  ];

  it("exp2 is within 2 units in the last place", () => {
    expect(errors("exp2", range(-126, 127.49), (x) => 2 ** x).ulps).toBeLessThan(2);
    expect(errors("exp2", range(-1, 1), (x) => 2 ** x).ulps).toBeLessThan(2);
  });
  it("exp2 of whole numbers is exact, and ends in 0 and infinity", () => {
    const whole = Float32Array.from({ length: 252 }, (_, i) => i - 125);
    expect([...apply("exp2", whole, new Float32Array(252), features)]).toEqual(Array.from(whole, (x) => 2 ** x));
    expect(values("exp2", -126.6, -1000, -Infinity, 127.5)).toEqual([0, 0, 0, Infinity]);
    expect(values("exp2", 1000, Infinity, NaN, 0)).toEqual([Infinity, Infinity, NaN, 1]);
  });

  it("exp has a relative error of at most 6e-8 (|x| + 2)", () => {
    for (const end of [1, 10, 80]) {
      const { relative } = errors("exp", range(-end, end), Math.exp);
      expect(relative).toBeLessThan(6e-8 * (end + 2));
    }
    expect(values("exp", -Infinity, 0, Infinity, NaN)).toEqual([0, 1, Infinity, NaN]);
  });

  it("sigmoid has a relative error below 3e-7 for |x| up to 4, and an absolute one below 1.2e-7 everywhere", () => {
    const exact = (x: number): number => 1 / (1 + Math.exp(-x));
    expect(errors("sigmoid", range(-4, 4), exact).relative).toBeLessThan(3e-7);
    expect(errors("sigmoid", range(-200, 200), exact).absolute).toBeLessThan(1.2e-7);
    expect(values("sigmoid", -Infinity, 0, Infinity, NaN)).toEqual([0, 0.5, 1, NaN]);
  });

  it("tanh has an absolute error below 2e-7 and a relative one below 4e-7", () => {
    for (const end of [1e-6, 0.7, 3, 30]) {
      const { absolute, relative } = errors("tanh", range(-end, end), Math.tanh);
      expect(absolute).toBeLessThan(2e-7);
      expect(relative).toBeLessThan(4e-7);
    }
    expect(values("tanh", -Infinity, 0, Infinity, NaN)).toEqual([-1, 0, 1, NaN]);
    expect(values("tanh", 100, -100, 2 ** -140, -(2 ** -140))).toEqual([1, -1, 2 ** -140, -(2 ** -140)]);
  });

  it("log is within 2 units in the last place, or 6e-8 near 1", () => {
    for (const [from, to] of [
      [2 ** -126, 2 ** -100],
      [1e-3, 0.5],
      [2, 1e6],
      [1e30, 3.4e38],
    ]) {
      expect(errors("log", range(from, to), Math.log).ulps).toBeLessThan(2);
    }
    expect(errors("log", range(0.5, 2), Math.log).absolute).toBeLessThan(6e-8);
    expect(values("log", 1, 1, 1, 0).map((y) => Math.round(y))).toEqual([0, 0, 0, -88]);
  });

  const allHalves = Int32Array.from({ length: 65536 }, (_, code) => code);
  const halfValues = Float32Array.from(allHalves, f16Value);

  it("f16ToF32 knows all 65,536 halves", () => {
    expect(differences(apply("f16ToF32", allHalves, new Float32Array(65536), features), halfValues)).toEqual([]);
  });
  it("finiteF16ToF32 knows all finite ones", () => {
    const hasFiniteCode = (_: number, code: number): boolean => (code & 0x7c00) !== 0x7c00;
    const got = apply("finiteF16ToF32", allHalves, new Float32Array(65536), features);
    expect(differences(got.filter(hasFiniteCode), halfValues.filter(hasFiniteCode))).toEqual([]);
  });
  it("f32ToF16 is exact for every half, and rounds to even between two of them", () => {
    const expected = Int32Array.from(halfValues, (value) => toF16(value));
    expect(differences(apply("f32ToF16", halfValues, new Int32Array(65536), features), expected)).toEqual([]);
    // Halfway to the next half, and a little below and above.
    for (const nudge of [-1, 0, 1]) {
      const bits = Int32Array.from(allHalves, (code) => {
        const [here, next] = [f16Value(code), code % 0x8000 === 0x7bff ? 65536 : f16Value(code + 1)];
        const middle = new Int32Array(Float32Array.of((Math.abs(here) + Math.abs(next)) / 2).buffer)[0] + nudge;
        return code & 0x8000 ? middle | 0x80000000 : middle;
      });
      const between = new Float32Array(bits.buffer);
      const want = Int32Array.from(between, (value) => toF16(value));
      expect(differences(apply("f32ToF16", between, new Int32Array(65536), features), want)).toEqual([]);
    }
  });
  it("f32ToF16 agrees with the plain conversion over the whole range of f32", () => {
    const some = new Float32Array(Int32Array.from({ length: 65536 }, (_, i) => Math.imul(i, 65537) + 40503 * i).buffer);
    const want = Int32Array.from(some, (value) => toF16(value) & (Number.isNaN(value) ? 0x7fff : 0xffff));
    const got = apply("f32ToF16", some, new Int32Array(65536), features);
    const unsigned = got.map((half, i) => (Number.isNaN(some[i]) ? half & 0x7fff : half));
    expect(differences(unsigned, want)).toEqual([]);
  });
  it("bf16ToF32 knows all 65,536", () => {
    const got = apply("bf16ToF32", allHalves, new Float32Array(65536), features);
    const numbers = allHalves.filter((code) => !Number.isNaN(got[code]));
    const codes = numbers.map((code) => toBf16(got[code]));
    expect(differences(codes, numbers)).toEqual([]);
    expect(65536 - numbers.length).toBe(2 * 127);
  });

  /** Each number, the ones next to it, halfway to the next and beside that; of both signs. */
  function around(numbers: readonly number[]): Float32Array {
    const positive = numbers.filter((x) => Number.isFinite(x) && x >= 0).sort((a, b) => a - b);
    const bits = positive.flatMap((x, i) => {
      const [here, middle] = new Int32Array(Float32Array.of(x, (x + (positive[i + 1] ?? 2 * x)) / 2).buffer);
      return [here - 1, here, here + 1, middle - 1, middle, middle + 1].filter((word) => word >= 0);
    });
    const ends = [0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000, 0x7fffffff, 1, 0x007fffff, 0x00800000];
    const both = [...bits, ...ends].flatMap((word) => [word, word | 0x80000000]);
    return new Float32Array(Int32Array.from([...both, 0, 0, 0].slice(0, both.length + (-both.length & 3))).buffer);
  }
  const everyByte = Array.from({ length: 256 }, (_, code) => code);
  it.each([
    ["f32ToBf16", toBf16, Array.from({ length: 0x7f80 }, (_, code) => code).map((code) => bf16Value(code))],
    ["f32ToE4m3", toE4m3, everyByte.map(e4m3ToF32)],
    ["f32ToE5m2", toE5m2, everyByte.map(e5m2ToF32)],
  ] as const)(
    "%s agrees with the plain conversion at, beside and between all of its numbers",
    (name, convert, numbers) => {
      const x = around(numbers);
      // From their bits: a NaN that JavaScript has touched need not have kept its own.
      const want = Int32Array.from(x, (value, i) =>
        Number.isNaN(value) ? nanCode(name, new Int32Array(x.buffer)[i]) : convert(value),
      );
      expect(differences(apply(name, x, new Int32Array(x.length), features), want)).toEqual([]);
    },
  );

  it("scalar lifts a vector function to one number, with the same bits", () => {
    const lifted = defineKernel({
      name: "lifted",
      params: { x: "f32", out: "pointer" },
      build(k, _spec: null, p) {
        k.store("f32", p.out, scalar(k, exp, p.x));
      },
    });
    const out = new Float32Array(1);
    runKernel(lifted, null, { x: 1.25, out }, { features });
    expect(out[0]).toBe(values("exp", 1.25, 0, 0, 0)[0]);
    expect(out[0] / Math.exp(1.25)).toBeCloseTo(1, 6);
  });
});
