import { describe, expect, it } from "vitest";
import { featureSets, runKernel, type TestArray } from "../../test/kernels/runKernel.ts";
import { defineKernel, type KernelBuilder } from "./builder.ts";
import { isOperation, type Operation, signatures } from "./operations.ts";
import type { ValueType } from "./tree.ts";
import { operationValue, type Value } from "./value.ts";

/** The lanes of a value as numbers; a scalar has one. */
type Lanes = readonly number[];
type Meaning = (...args: Lanes[]) => Lanes;

const { fround, imul } = Math;
const bits = new DataView(new ArrayBuffer(16));

const each =
  (f: (a: number, b: number, c: number) => number): Meaning =>
  (a, b = a, c = a) =>
    a.map((x, lane) => f(x, b[lane], c[lane]));
/** One shift count for all lanes. */
const shift =
  (f: (a: number, count: number) => number): Meaning =>
  (a, [count]) =>
    a.map((x) => f(x, count));
const float = (f: (a: number, b: number, c: number) => number): Meaning => each((a, b, c) => fround(f(a, b, c)));
const int16 = (value: number): number => (value << 16) >> 16;
const int8 = (value: number): number => (value << 24) >> 24;
const clamp = (value: number, low: number, high: number): number => Math.min(Math.max(value, low), high);
const mask = (f: (a: number, b: number) => boolean): Meaning => each((a, b) => (f(a, b) ? -1 : 0));
const truth = (f: (a: number, b: number) => boolean): Meaning => each((a, b) => (f(a, b) ? 1 : 0));
const splat =
  (lanes: number, f: (value: number) => number): Meaning =>
  ([value]) =>
    Array<number>(lanes).fill(f(value));
const pairs = (values: Lanes, f: (even: number, odd: number) => number): number[] =>
  Array.from({ length: values.length / 2 }, (_, i) => f(values[2 * i], values[2 * i + 1]));
const products = (a: Lanes, b: Lanes): number[] => a.map((x, lane) => imul(x, b[lane]));
const low = (values: Lanes): Lanes => values.slice(0, values.length / 2);
const high = (values: Lanes): Lanes => values.slice(values.length / 2);

function nearestEven(x: number): number {
  if (!Number.isFinite(x) || Math.abs(x) >= 2 ** 23) return x;
  const below = Math.floor(x);
  const even = below % 2 === 0 ? below : below + 1;
  const rounded = x - below === 0.5 ? even : x - below < 0.5 ? below : below + 1;
  return rounded === 0 && (x < 0 || Object.is(x, -0)) ? -0 : rounded;
}
const saturate = (x: number): number => (Number.isNaN(x) ? 0 : clamp(Math.trunc(x), -(2 ** 31), 2 ** 31 - 1) | 0);
const asI32 = (x: number): number => {
  bits.setFloat32(0, x);
  return bits.getInt32(0);
};
const asF32 = (x: number): number => {
  bits.setInt32(0, x);
  return bits.getFloat32(0);
};
/** The lanes of one vector type seen as another's. */
const seenAs =
  (from: VectorName, to: VectorName): Meaning =>
  (values) => [...new arrayTypes[to](new arrayTypes[from](values).buffer)];

/** a * b + c rounded once. The product is exact in f64; the sum is rounded to odd there, which a second rounding cannot see. */
function fusedMultiplyAdd(a: number, b: number, c: number): number {
  const product = a * b;
  const sum = product + c;
  const second = sum - product;
  const error = product - (sum - second) + (c - second);
  if (!Number.isFinite(sum) || Number.isNaN(error) || error === 0) return fround(sum);
  bits.setFloat64(0, sum);
  const code = bits.getBigInt64(0);
  if ((code & 1n) === 0n) bits.setBigInt64(0, code + (error > 0 === sum > 0 ? 1n : -1n));
  return fround(bits.getFloat64(0));
}

type VectorName = "f32v" | "i32v" | "i16v" | "i8v";
const arrayTypes = {
  i32: Int32Array,
  f32: Float32Array,
  i32v: Int32Array,
  f32v: Float32Array,
  i16v: Int16Array,
  i8v: Int8Array,
} as const satisfies Record<ValueType, new (lanes: Lanes) => TestArray>;
const laneCounts: Record<ValueType, number> = { i32: 1, f32: 1, i32v: 4, f32v: 4, i16v: 8, i8v: 16 };

const pick = (condition: number, a: number, b: number): number => (condition !== 0 ? a : b);
const minimum = (a: number, b: number): number => (b < a ? b : a);
const maximum = (a: number, b: number): number => (a < b ? b : a);

/** What each operation means, in JavaScript. `f32v.fma` has two lawful meanings and is tested apart. */
const meanings: Record<Exclude<Operation, "f32v.fma">, Meaning> = {
  "i32.add": each((a, b) => (a + b) | 0),
  "i32.sub": each((a, b) => (a - b) | 0),
  "i32.mul": each(imul),
  "i32.div": each((a, b) => Math.trunc(a / b) | 0),
  "i32.divU": each((a, b) => Math.floor((a >>> 0) / (b >>> 0)) | 0),
  "i32.rem": each((a, b) => (a % b) | 0),
  "i32.and": each((a, b) => a & b),
  "i32.or": each((a, b) => a | b),
  "i32.xor": each((a, b) => a ^ b),
  "i32.shl": shift((a, count) => a << count),
  "i32.shr": shift((a, count) => a >> count),
  "i32.shrU": shift((a, count) => (a >>> count) | 0),
  "i32.eq": truth((a, b) => a === b),
  "i32.ne": truth((a, b) => a !== b),
  "i32.lt": truth((a, b) => a < b),
  "i32.ltU": truth((a, b) => a >>> 0 < b >>> 0),
  "i32.le": truth((a, b) => a <= b),
  "i32.gt": truth((a, b) => a > b),
  "i32.ge": truth((a, b) => a >= b),
  "i32.select": each(pick),
  "i32.toF32": each(fround),
  "i32.asF32": each(asF32),

  "f32.add": float((a, b) => a + b),
  "f32.sub": float((a, b) => a - b),
  "f32.mul": float((a, b) => a * b),
  "f32.div": float((a, b) => a / b),
  "f32.min": each(minimum),
  "f32.max": each(maximum),
  "f32.neg": each((a) => -a),
  "f32.abs": each(Math.abs),
  "f32.sqrt": float(Math.sqrt),
  "f32.floor": each(Math.floor),
  "f32.nearest": each(nearestEven),
  "f32.eq": truth((a, b) => a === b),
  "f32.ne": truth((a, b) => a !== b),
  "f32.lt": truth((a, b) => a < b),
  "f32.le": truth((a, b) => a <= b),
  "f32.gt": truth((a, b) => a > b),
  "f32.ge": truth((a, b) => a >= b),
  "f32.select": each(pick),
  "f32.truncate": each(saturate),
  "f32.asI32": each(asI32),

  "f32v.splat": splat(4, (x) => x),
  "f32v.add": float((a, b) => a + b),
  "f32v.sub": float((a, b) => a - b),
  "f32v.mul": float((a, b) => a * b),
  "f32v.div": float((a, b) => a / b),
  "f32v.min": each(minimum),
  "f32v.max": each(maximum),
  "f32v.neg": each((a) => -a),
  "f32v.abs": each(Math.abs),
  "f32v.sqrt": float(Math.sqrt),
  "f32v.floor": each(Math.floor),
  "f32v.nearest": each(nearestEven),
  "f32v.eq": mask((a, b) => a === b),
  "f32v.ne": mask((a, b) => a !== b),
  "f32v.lt": mask((a, b) => a < b),
  "f32v.le": mask((a, b) => a <= b),
  "f32v.gt": mask((a, b) => a > b),
  "f32v.ge": mask((a, b) => a >= b),
  "f32v.select": each(pick),
  "f32v.pairAdd": (a, b) => pairs([...a, ...b], (even, odd) => fround(even + odd)),
  "f32v.truncate": each(saturate),

  "i32v.splat": splat(4, (x) => x),
  "i32v.add": each((a, b) => (a + b) | 0),
  "i32v.sub": each((a, b) => (a - b) | 0),
  "i32v.mul": each(imul),
  "i32v.and": each((a, b) => a & b),
  "i32v.or": each((a, b) => a | b),
  "i32v.xor": each((a, b) => a ^ b),
  "i32v.min": each(Math.min),
  "i32v.max": each((a, b) => Math.max(a, b)),
  "i32v.shl": shift((a, count) => a << count),
  "i32v.shr": shift((a, count) => a >> count),
  "i32v.shrU": shift((a, count) => (a >>> count) | 0),
  "i32v.eq": mask((a, b) => a === b),
  "i32v.ne": mask((a, b) => a !== b),
  "i32v.lt": mask((a, b) => a < b),
  "i32v.le": mask((a, b) => a <= b),
  "i32v.gt": mask((a, b) => a > b),
  "i32v.ge": mask((a, b) => a >= b),
  "i32v.select": each(pick),
  "i32v.pairAdd": (a, b) => pairs([...a, ...b], (even, odd) => (even + odd) | 0),
  "i32v.toF32": each(fround),
  "i32v.anyTrue": (a) => [a.some((lane) => lane !== 0) ? 1 : 0],
  "i32v.narrow": (a, b) => [...a, ...b].map((x) => clamp(x, -32768, 32767)),

  "i16v.splat": splat(8, int16),
  "i16v.add": each((a, b) => int16(a + b)),
  "i16v.sub": each((a, b) => int16(a - b)),
  "i16v.mul": each((a, b) => int16(imul(a, b))),
  "i16v.max": each((a, b) => Math.max(a, b)),
  "i16v.shl": shift((a, count) => int16(a << count)),
  "i16v.shr": shift((a, count) => a >> count),
  "i16v.shrU": shift((a, count) => int16((a & 0xffff) >>> count)),
  "i16v.widenLow": low,
  "i16v.widenHigh": high,
  "i16v.widenLowU": (a) => low(a).map((x) => x & 0xffff),
  "i16v.widenHighU": (a) => high(a).map((x) => x & 0xffff),
  "i16v.narrow": (a, b) => [...a, ...b].map((x) => clamp(x, -128, 127)),
  "i16v.dotPairs": (a, b) => pairs(products(a, b), (even, odd) => (even + odd) | 0),

  "i8v.splat": splat(16, int8),
  "i8v.add": each((a, b) => int8(a + b)),
  "i8v.sub": each((a, b) => int8(a - b)),
  "i8v.and": each((a, b) => a & b),
  "i8v.or": each((a, b) => a | b),
  "i8v.xor": each((a, b) => a ^ b),
  "i8v.widenLow": low,
  "i8v.widenHigh": high,
  "i8v.lookup16": (table, index) => index.map((i) => table[i]),
  "i8v.dotPairsU7": (a, b) => pairs(products(a, b), (even, odd) => even + odd),

  "as.f32v": seenAs("i32v", "f32v"),
  "as.i32v": seenAs("i8v", "i32v"),
  "as.i16v": seenAs("i8v", "i16v"),
  "as.i8v": seenAs("i32v", "i8v"),
};

const smallest = 2 ** -149;
const largest = 3.4028234663852886e38;
const floats = [
  0,
  -0,
  1,
  -1,
  0.5,
  -0.5,
  1.5,
  2.5,
  -2.5,
  0.3,
  -0.3,
  3.1415927410125732,
  8388607.5,
  -8388609,
  2147483520,
  2147483648,
  -2147483648,
  -4294967296,
  smallest,
  -smallest,
  2 ** -126,
  largest,
  -largest,
  Infinity,
  -Infinity,
  NaN,
].map(fround);
const words = [
  0, 1, -1, 2, 3, -7, 127, 128, -128, -129, 255, 32767, 32768, -32768, -32769, 65535, 16777217, 2147483520, 2147483647,
  -2147483648, 0x55555555, -1431655766,
];
const halves = [0, 1, -1, 2, -3, 127, 128, -128, -129, 255, 256, 181, -181, 32767, -32767, -32768];
const bytes = [0, 1, -1, 2, -3, 15, 16, 63, 64, 100, -100, 127, -127, -128];
const edges: Record<ValueType, Lanes> = {
  i32: words,
  f32: floats,
  i32v: words,
  f32v: floats,
  i16v: halves,
  i8v: bytes,
};

/** The values that operand `index` of an operation is tried with: edges, less what the operation leaves undefined. */
function operandValues(operation: Operation, index: number): Lanes {
  const type = signatures[operation][0][index];
  if (/\.(shl|shr|shrU)$/.test(operation) && index === 1)
    return Array.from({ length: operation.startsWith("i16v") ? 16 : 32 }, (_, count) => count);
  if (operation.endsWith(".select") && index === 0) return operation.includes("v.") ? [0, -1] : [0, 1, -1, 256];
  if (/\.(div|divU|rem)$/.test(operation) && type === "i32" && index === 1) return words.filter((word) => word !== 0);
  if (operation === "i8v.lookup16" && index === 1) return Array.from({ length: 16 }, (_, i) => i);
  if (operation === "i8v.dotPairsU7" && index === 1) return bytes.filter((byte) => byte >= 0);
  return edges[type];
}

/** Every combination of the operands' values, laid out over lanes; a case is the lanes of each operand. */
function casesOf(operation: Operation): Lanes[][] {
  const [types] = signatures[operation];
  const lists = types.map((_, index) => operandValues(operation, index));
  let combinations: number[][] = [[]];
  for (const values of lists)
    combinations = combinations.flatMap((before) => values.map((value) => [...before, value]));
  if (operation === "i32.div") combinations = combinations.filter(([a, b]) => a !== -(2 ** 31) || b !== -1);
  // Lanes take consecutive combinations and each case begins one further, so that every lane meets every combination.
  return combinations.map((_, from) =>
    types.map((type, operand) =>
      Array.from({ length: laneCounts[type] }, (_, lane) => combinations[(from + lane) % combinations.length][operand]),
    ),
  );
}

function loadOperand(k: KernelBuilder, type: ValueType, address: Value<"i32">): Value {
  return k.load(type, address);
}

/** Does one operation for each task: operands and result are arrays of cases. */
const operationKernel = defineKernel({
  name: "operation",
  params: { a: "pointer", b: "pointer", c: "pointer", out: "pointer" },
  build(k, operation: Operation, p) {
    const [types, result] = signatures[operation];
    const numBytes = (type: ValueType): number => (type === "i32" || type === "f32" ? 4 : k.lanes * 4);
    k.forTasks((task) => {
      const operands = types.map((type, index) =>
        loadOperand(k, type, [p.a, p.b, p.c][index].add(task.mul(numBytes(type)))),
      );
      k.store(result, p.out.add(task.mul(numBytes(result))), operationValue(operation, result, operands));
    });
  },
});

function execute(operation: Operation, cases: readonly Lanes[][], features: (typeof featureSets)[number][1]): Lanes[] {
  const [types, result] = signatures[operation];
  const operand = (index: number): TestArray =>
    index < types.length ? new arrayTypes[types[index]](cases.flatMap((lanes) => lanes[index])) : new Int32Array(1);
  const lanes = laneCounts[result];
  const out = new arrayTypes[result](new Array<number>(cases.length * lanes).fill(0));
  runKernel(
    operationKernel,
    operation,
    { a: operand(0), b: operand(1), c: operand(2), out },
    { features, calls: [[0, cases.length]] },
  );
  return cases.map((_, i) => [...out.subarray(i * lanes, (i + 1) * lanes)]);
}

const operations = Object.keys(signatures).filter(isOperation);

describe.each(featureSets)("with %s", (_name, features) => {
  it.each(operations.filter((operation) => operation !== "f32v.fma"))(
    "%s does what it says on edge values",
    (operation) => {
      const cases = casesOf(operation);
      const meaning = meanings[operation];
      const results = execute(operation, cases, features);
      const wrong = cases
        .map((lanes, i) => ({ operands: lanes, got: results[i], want: meaning(...lanes) }))
        .filter(({ got, want }) => got.length !== want.length || !got.every((lane, i) => Object.is(lane, want[i])));
      expect(wrong).toEqual([]);
    },
  );

  it("f32v.fma is rounded once everywhere or twice everywhere", () => {
    const cases = casesOf("f32v.fma");
    const results = execute("f32v.fma", cases, features);
    const fused = each(fusedMultiplyAdd);
    const unfused = float((a, b, c) => fround(a * b) + c);
    const agree = (meaning: Meaning): boolean =>
      results.every((lanes, i) => {
        const want = meaning(...cases[i]);
        return lanes.every((lane, at) => Object.is(lane, want[at]));
      });
    expect(agree(unfused) || (features.relaxedSimd && agree(fused))).toBe(true);
  });

  it.each([
    ["i32.div", 1, 0],
    ["i32.divU", 1, 0],
    ["i32.rem", 1, 0],
    ["i32.div", -(2 ** 31), -1],
  ] as const)("%s of %i by %i stops the kernel", (operation, a, b) => {
    expect(() => execute(operation, [[[a], [b]]], features)).toThrow(WebAssembly.RuntimeError);
  });
});
