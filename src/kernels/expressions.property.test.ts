import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { featureSets, runKernel } from "../../test/kernels/runKernel.ts";
import { defineKernel, type KernelBuilder } from "./builder.ts";
import type { Value } from "./value.ts";

/** A random expression: an input, a constant, or an operation on smaller ones. `shared` ones are named by `let`. */
type Tree =
  | { readonly kind: "input"; readonly index: number }
  | { readonly kind: "constant"; readonly value: number }
  | {
      readonly kind: "apply";
      readonly operation: Operation;
      readonly args: readonly Tree[];
      readonly isNamed: boolean;
    };

/** An operation of the kernel language, and the same on one lane in JavaScript; `float` ones have operands and result f32. */
interface Operation {
  readonly name: string;
  readonly build: (k: KernelBuilder, a: Value<"f32v">, b: Value<"f32v">) => Value<"f32v">;
  readonly lane: (a: number, b: number) => number;
}

const { fround } = Math;
const integer = (a: number): number =>
  Number.isNaN(a) ? 0 : Math.min(Math.max(Math.trunc(a), -(2 ** 31)), 2 ** 31 - 1) | 0;
/** An operation on the numbers truncated to i32, so that both vector types meet in one expression. */
const onIntegers = (
  name: string,
  build: (a: Value<"i32v">, b: Value<"i32v">) => Value<"i32v">,
  lane: (a: number, b: number) => number,
): Operation => ({
  name,
  build: (_k, a, b) => build(a.truncate(), b.truncate()).toF32(),
  lane: (a, b) => fround(lane(integer(a), integer(b)) | 0),
});

const operations: readonly Operation[] = [
  { name: "add", build: (_k, a, b) => a.add(b), lane: (a, b) => fround(a + b) },
  { name: "sub", build: (_k, a, b) => a.sub(b), lane: (a, b) => fround(a - b) },
  { name: "mul", build: (_k, a, b) => a.mul(b), lane: (a, b) => fround(a * b) },
  { name: "div", build: (_k, a, b) => a.div(b), lane: (a, b) => fround(a / b) },
  { name: "min", build: (_k, a, b) => a.min(b), lane: (a, b) => (b < a ? b : a) },
  { name: "max", build: (_k, a, b) => a.max(b), lane: (a, b) => (a < b ? b : a) },
  { name: "neg", build: (_k, a) => a.neg(), lane: (a) => -a },
  { name: "abs", build: (_k, a) => a.abs(), lane: (a) => Math.abs(a) },
  { name: "floor", build: (_k, a) => a.floor(), lane: (a) => Math.floor(a) },
  { name: "select", build: (k, a, b) => k.select(a.lt(b), b, a.sub(b)), lane: (a, b) => (a < b ? b : fround(a - b)) },
  onIntegers(
    "integer add",
    (a, b) => a.add(b),
    (a, b) => a + b,
  ),
  onIntegers("integer mul", (a, b) => a.mul(b), Math.imul),
  onIntegers(
    "integer xor",
    (a, b) => a.xor(b),
    (a, b) => a ^ b,
  ),
  onIntegers("integer max", (a, b) => a.max(b), Math.max),
  onIntegers(
    "shifts",
    (a, b) => a.shl(3).sub(b.shrU(5)).add(a.shr(2)),
    (a, b) => (a << 3) - (b >>> 5) + (a >> 2),
  ),
  onIntegers(
    "mask",
    (a, b) => a.ge(b).or(a.eq(b).and(b)),
    (a, b) => (a >= b ? -1 : 0) | (a === b ? b : 0),
  ),
];

const { tree } = fc.letrec<{ tree: Tree }>((tie) => ({
  tree: fc.oneof(
    { maxDepth: 6, withCrossShrink: true },
    fc.record({ kind: fc.constant("input" as const), index: fc.integer({ min: 0, max: 2 }) }),
    fc.record({ kind: fc.constant("constant" as const), value: fc.float().map(fround) }),
    fc.record({
      kind: fc.constant("apply" as const),
      operation: fc.constantFrom(...operations),
      args: fc.tuple(tie("tree"), tie("tree")),
      isNamed: fc.boolean(),
    }),
  ),
}));

function build(k: KernelBuilder, node: Tree, inputs: readonly Value<"f32v">[]): Value<"f32v"> {
  if (node.kind === "input") return inputs[node.index];
  if (node.kind === "constant") return k.all("f32v", node.value);
  const [a, b] = node.args.map((arg) => build(k, arg, inputs));
  const result = node.operation.build(k, a, b);
  return node.isNamed ? k.let(result) : result;
}

function interpret(node: Tree, inputs: readonly number[]): number {
  if (node.kind === "input") return inputs[node.index];
  if (node.kind === "constant") return node.value;
  const [a, b] = node.args.map((arg) => interpret(arg, inputs));
  return node.operation.lane(a, b);
}

const kernel = defineKernel({
  name: "expression",
  params: { inputs: "pointer", out: "pointer" },
  build(k, node: Tree, p) {
    const inputs = [0, 1, 2].map((i) => k.load("f32v", p.inputs, i * k.lanes * 4));
    k.store("f32v", p.out, build(k, node, inputs));
  },
});

describe.each(featureSets)("random expressions with %s", (_name, features) => {
  it("have the value that JavaScript gives them, lane by lane", () => {
    const lanes = fc.array(fc.float().map(fround), { minLength: 12, maxLength: 12 });
    fc.assert(
      fc.property(tree, lanes, (node, values) => {
        const out = new Float32Array(4);
        runKernel(kernel, node, { inputs: Float32Array.from(values), out }, { features });
        const expected = [0, 1, 2, 3].map((lane) =>
          interpret(
            node,
            [0, 4, 8].map((input) => values[input + lane]),
          ),
        );
        expect([...out]).toEqual(expected);
      }),
      { numRuns: 300, seed: 42 },
    );
  });
});
