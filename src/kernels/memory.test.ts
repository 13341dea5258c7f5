import { describe, expect, it } from "vitest";
import { runKernel } from "../../test/kernels/runKernel.ts";
import { defineKernel } from "./builder.ts";
import type { LoadForm } from "./tree.ts";
import type { Value } from "./value.ts";

/** Bytes with the sign bit set here and there, so that a wrong widening shows. */
const bytes = Uint8Array.from({ length: 32 }, (_, i) => (i * 37 + 200) & 255);
const view = new DataView(bytes.buffer);
const at = 3; // forms ask for no alignment

const lanes32 = (value: (lane: number) => number): Int32Array =>
  Int32Array.from({ length: 4 }, (_, lane) => value(lane));
const bitsOf = (array: Int16Array | Float32Array): Int32Array => new Int32Array(array.buffer);

/** What a register, or a scalar in its first lane, holds after the load at byte `at`. */
const loaded: Record<Exclude<LoadForm, "f32">, Int32Array> = {
  i32: lanes32((lane) => (lane === 0 ? view.getInt32(at, true) : 0)),
  u8: lanes32((lane) => (lane === 0 ? view.getUint8(at) : 0)),
  i8: lanes32((lane) => (lane === 0 ? view.getInt8(at) : 0)),
  u16: lanes32((lane) => (lane === 0 ? view.getUint16(at, true) : 0)),
  i16: lanes32((lane) => (lane === 0 ? view.getInt16(at, true) : 0)),
  f32v: lanes32((lane) => view.getInt32(at + lane * 4, true)),
  i32v: lanes32((lane) => view.getInt32(at + lane * 4, true)),
  i16v: lanes32((lane) => view.getInt32(at + lane * 4, true)),
  i8v: lanes32((lane) => view.getInt32(at + lane * 4, true)),
  splat32: lanes32(() => view.getInt32(at, true)),
  splat64: lanes32((lane) => view.getInt32(at + (lane & 1) * 4, true)),
  "u16 to i32v": lanes32((lane) => view.getUint16(at + lane * 2, true)),
  "i16 to i32v": lanes32((lane) => view.getInt16(at + lane * 2, true)),
  "i8 to i16v": bitsOf(Int16Array.from({ length: 8 }, (_, lane) => view.getInt8(at + lane))),
};

const isLoadForm = (form: string): form is keyof typeof loaded => Object.hasOwn(loaded, form);

describe("loads", () => {
  it.each(Object.keys(loaded).filter(isLoadForm))("%s", (form) => {
    const kernel = defineKernel({
      name: "load",
      params: { x: "pointer", out: "pointer" },
      build(k, offset: number, p) {
        const value = k.load(form, p.x.add(at - offset), offset);
        if (value.type === "i32")
          k.store("i32", p.out, value as Value<"i32">); // whose type was just compared
        else k.store("i32v", p.out, value.as("i32v"));
      },
    });
    for (const offset of [0, 2]) {
      const out = new Int32Array(4);
      runKernel(kernel, offset, { x: bytes, out });
      expect(out).toEqual(loaded[form]);
    }
  });

  it("f32 and loadSplatF32", () => {
    const kernel = defineKernel({
      name: "load",
      params: { x: "pointer", out: "pointer" },
      build(k, _spec: null, p) {
        k.store("f32v", p.out, k.loadSplatF32(p.x, 4));
        k.store("f32", p.out, k.load("f32", p.x));
      },
    });
    const out = new Float32Array(4);
    runKernel(kernel, null, { x: Float32Array.of(-0, 2.5), out });
    expect([...out]).toEqual([-0, 2.5, 2.5, 2.5]);
  });
});

describe("stores", () => {
  const kernel = defineKernel({
    name: "store",
    params: { x: "pointer", out: "pointer" },
    build(k, form: "i32" | "u8" | "u16" | "f32v" | "i32v" | "i16v" | "i8v" | "i32v to u16", p) {
      switch (form) {
        case "i32":
        case "u8":
        case "u16":
          return k.store(form, p.out, k.load("i32", p.x), 3);
        case "i32v to u16":
          return k.store(form, p.out, k.load("u16 to i32v", p.x), 3);
        case "f32v":
          return k.store(form, p.out, k.load("f32v", p.x), 3);
        case "i32v":
          return k.store(form, p.out, k.load("i32v", p.x), 3);
        case "i16v":
          return k.store(form, p.out, k.load("i16v", p.x), 3);
        case "i8v":
          return k.store(form, p.out, k.load("i8v", p.x), 3);
      }
    },
  });

  it.each([
    ["u8", 1],
    ["u16", 2],
    ["i32", 4],
    ["i32v to u16", 8],
    ["f32v", 16],
    ["i32v", 16],
    ["i16v", 16],
    ["i8v", 16],
  ] as const)("%s writes %i bytes and no others", (form, length) => {
    const out = new Uint8Array(24).fill(0xee);
    runKernel(kernel, form, { x: bytes, out });
    const expected = new Uint8Array(24).fill(0xee);
    expected.set(bytes.subarray(0, length), 3);
    expect(out).toEqual(expected);
  });

  it("a number, in every lane of a vector form", () => {
    const numbers = defineKernel({
      name: "numbers",
      params: { out: "pointer" },
      build(k, _spec: null, p) {
        k.store("f32v", p.out, 1.5);
        k.store("f32", p.out, -0, 4);
      },
    });
    const out = new Float32Array(4);
    runKernel(numbers, null, { out });
    expect([...out]).toEqual([1.5, -0, 1.5, 1.5]);
  });
});

describe("lanes", () => {
  it("one by one, all by their sum and by their largest, and their indices", () => {
    const kernel = defineKernel({
      name: "lanes",
      params: { x: "pointer", out: "pointer" },
      build(k, _spec: null, p) {
        const x = k.let(k.load("f32v", p.x));
        for (let lane = 0; lane < k.lanes; lane++) k.store("f32", p.out, x.lane(lane), 4 * lane);
        for (let lane = 0; lane < k.lanes; lane++)
          k.store("f32", p.out, k.laneIndices().lane(lane).toF32(), 16 + 4 * lane);
        k.store("f32", p.out, k.sumLanes(x), 32);
        k.store("f32", p.out, k.maxLanes(x), 36);
      },
    });
    const out = new Float32Array(10);
    runKernel(kernel, null, { x: Float32Array.of(1, 2 ** 24, 1, -(2 ** 24)), out });
    // Neighbours first: (1 + 2^24) + (1 - 2^24), where 1 + 2^24 rounds to 2^24.
    expect([...out]).toEqual([1, 2 ** 24, 1, -(2 ** 24), 0, 1, 2, 3, 1, 2 ** 24]);
  });
});

describe("constants", () => {
  it("of every type, signed or unsigned, and patterns of bytes", () => {
    const kernel = defineKernel({
      name: "constants",
      params: { out: "pointer" },
      build(k, _spec: null, p) {
        k.store("i32v", p.out, k.all("i32v", 0xffffffff));
        k.store("i16v", p.out, k.all("i16v", 0x8000), 16);
        k.store("i8v", p.out, k.all("i8v", 200), 32);
        k.store("i8v", p.out, k.bytes(Array.from({ length: 16 }, (_, i) => i - 1)), 48);
        k.store("i32v", p.out, k.splat(k.i32(-(2 ** 31))), 64);
        k.store("i16v", p.out, k.splatI16(k.i32(-2)), 80);
      },
    });
    const out = new Int32Array(24);
    runKernel(kernel, null, { out });
    const repeat = (word: number): number[] => [word, word, word, word];
    expect([...out]).toEqual([
      ...repeat(-1),
      ...repeat(0x80008000 | 0),
      ...repeat(0xc8c8c8c8 | 0),
      ...new Int32Array(Int8Array.from({ length: 16 }, (_, i) => i - 1).buffer),
      ...repeat(-(2 ** 31)),
      ...repeat(0xfffefffe | 0),
    ]);
  });
});
