import { describe, expect, it } from "vitest";
import { runKernel } from "../../test/kernels/runKernel.ts";
import { defineKernel } from "./builder.ts";

/** Appends to a list in memory: the count, then the entries. */
const list = (): Int32Array => new Int32Array(64);
const entriesOf = ([count, ...entries]: Int32Array): number[] => entries.slice(0, count);

describe("for", () => {
  const kernel = defineKernel({
    name: "count",
    params: { start: "i32", end: "i32", step: "i32", out: "pointer" },
    build(k, _spec: null, p) {
      k.for(p.start, p.end, p.step, (i) => {
        const place = k.atomicAdd(p.out, 1);
        k.store("i32", p.out.add(place.mul(4)), i, 4);
      });
    },
  });
  const visited = (start: number, end: number, step: number): number[] => {
    const out = list();
    runKernel(kernel, null, { start, end, step, out });
    return entriesOf(out);
  };

  it("visits start up to, but without, end", () => {
    expect(visited(0, 4, 1)).toEqual([0, 1, 2, 3]);
    expect(visited(-3, 6, 4)).toEqual([-3, 1, 5]);
    expect(visited(2 ** 31 - 3, 2 ** 31 - 1, 1)).toEqual([2 ** 31 - 3, 2 ** 31 - 2]);
  });
  it("visits nothing when start is not below end", () => {
    expect(visited(4, 4, 1)).toEqual([]);
    expect(visited(5, -5, 1)).toEqual([]);
  });

  it("reads its bounds and its step once, before the first turn", () => {
    const changing = defineKernel({
      name: "changing",
      params: { out: "pointer" },
      build(k, _spec: null, p) {
        const end = k.var("i32", 6);
        const step = k.var("i32", 2);
        k.for(0, end.value, step.value, (i) => {
          end.set(end.value.add(100));
          step.set(step.value.add(1));
          k.store("i32", p.out.add(k.atomicAdd(p.out, 1).mul(4)), i, 4);
        });
      },
    });
    const out = list();
    runKernel(changing, null, { out });
    expect(entriesOf(out)).toEqual([0, 2, 4]);
  });

  it("nests, and the inner loop starts anew each time", () => {
    const nested = defineKernel({
      name: "nested",
      params: { out: "pointer" },
      build(k, _spec: null, p) {
        k.for(0, 3, 1, (i) => {
          k.for(0, i, 1, (j) => k.store("i32", p.out.add(k.atomicAdd(p.out, 1).mul(4)), i.mul(10).add(j), 4));
        });
      },
    });
    const out = list();
    runKernel(nested, null, { out });
    expect(entriesOf(out)).toEqual([10, 20, 21]);
  });
});

describe("while and if", () => {
  /** The steps of the Collatz sequence from `n` to 1. */
  const kernel = defineKernel({
    name: "collatz",
    params: { n: "i32", out: "pointer" },
    build(k, _spec: null, p) {
      const n = k.var("i32", p.n);
      k.while(n.value.ne(1), () => {
        k.if(
          n.value.and(1).eq(0),
          () => n.set(n.value.shrU(1)),
          () => n.set(n.value.mul(3).add(1)),
        );
        k.store("i32", p.out.add(k.atomicAdd(p.out, 1).mul(4)), n.value, 4);
      });
    },
  });
  it.each([
    [1, []],
    [6, [3, 10, 5, 16, 8, 4, 2, 1]],
  ])("from %i", (n, steps) => {
    const out = list();
    runKernel(kernel, null, { n, out });
    expect(entriesOf(out)).toEqual(steps);
  });

  it("if without else, with a condition that is any number but 0", () => {
    const conditional = defineKernel({
      name: "conditional",
      params: { x: "i32", out: "pointer" },
      build(k, _spec: null, p) {
        k.if(p.x, () => k.store("i32", p.out, 7));
      },
    });
    for (const [x, expected] of [
      [0, 0],
      [1, 7],
      [-1, 7],
      [256, 7],
    ]) {
      const out = new Int32Array(1);
      runKernel(conditional, null, { x, out });
      expect(out[0]).toBe(expected);
    }
  });
});

describe("calls", () => {
  it("do the tasks they were given, and add to what earlier calls left", () => {
    const kernel = defineKernel({
      name: "tasks",
      params: { total: "pointer", before: "pointer" },
      build(k, _spec: null, p) {
        k.forTasks((task) => {
          const before = k.atomicAdd(p.total, task.add(1));
          k.store("i32", p.before.add(task.mul(4)), before);
        });
      },
    });
    const [total, before] = [Int32Array.of(100), new Int32Array(8).fill(-1)];
    runKernel(
      kernel,
      null,
      { total, before },
      {
        calls: [
          [4, 6],
          [0, 2],
          [3, 3],
          [6, 7],
        ],
      },
    );
    expect([...before]).toEqual([111, 112, -1, -1, 100, 105, 114, -1]);
    expect(total[0]).toBe(121);
  });

  it("have scratch memory for what they need", () => {
    const kernel = defineKernel({
      name: "scratch",
      params: { out: "pointer" },
      scratchBytes: (numWords: number) => numWords * 4,
      build(k, numWords: number, p) {
        k.for(0, numWords, 1, (i) => k.store("i32", k.scratch.add(i.mul(4)), i.mul(i)));
        k.store("i32", p.out, k.load("i32", k.scratch, (numWords - 1) * 4));
      },
    });
    const out = new Int32Array(1);
    runKernel(kernel, 50_000, { out });
    expect(out[0]).toBe(Math.imul(49_999, 49_999));
  });
});

describe("variables", () => {
  it("keep what `let` named while the variable changes", () => {
    const kernel = defineKernel({
      name: "swap",
      params: { a: "f32", b: "f32", out: "pointer" },
      build(k, _spec: null, p) {
        const [a, b] = [k.var("f32", p.a), k.var("f32", p.b)];
        const before = k.let(a.value);
        a.set(b.value);
        b.set(before);
        k.store("f32", p.out, a.value);
        k.store("f32", p.out, b.value, 4);
      },
    });
    const out = new Float32Array(2);
    runKernel(kernel, null, { a: 1, b: 2, out });
    expect([...out]).toEqual([2, 1]);
  });
});
