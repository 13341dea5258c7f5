import { describe, expect, it } from "vitest";
import { KernelBuilder } from "./builder.ts";
import type { ValueType } from "./tree.ts";
import { KernelTypeError, type Value } from "./value.ts";

const k = new KernelBuilder({ lanes: 4 });
const [i, f] = [k.let(k.i32(1)), k.let(k.f32(1))];
const [fv, iv, hv, bv] = [k.all("f32v", 1), k.all("i32v", 1), k.all("i16v", 1), k.all("i8v", 1)];

/** A value that TypeScript takes for another type, as code without its types could pass it. */
const disguised = <T extends ValueType>(value: Value): Value<T> => value as Value<T>;

describe("a kernel that TypeScript would not have let through", () => {
  it.each<[what: string, build: () => unknown, message: string]>([
    ["an operation of another type", () => f.and(f), "the kernel language has no operation f32.and"],
    ["division of integer vectors", () => iv.div(iv), "the kernel language has no operation i32v.div"],
    ["bytes widened without sign", () => bv.widenLowU(), "the kernel language has no operation i8v.widenLowU"],
    ["a scalar fma", () => f.fma(f, f), "the kernel language has no operation f32.fma"],
    ["an operand of another type", () => f.add(disguised<"f32">(i)), "operand 1 of f32.add must be f32, got i32"],
    ["a vector for a scalar", () => i.add(disguised<"i32">(iv)), "operand 1 of i32.add must be i32, got i32v"],
    ["a scalar mask", () => k.select(disguised<"i32v">(i), fv, fv), "operand 0 of f32v.select must be i32v, got i32"],
    ["a shift by lanes", () => iv.shl(disguised<"i32">(iv)), "operand 1 of i32v.shl must be i32, got i32v"],
    ["halves dotted with words", () => hv.dotPairs(disguised<"i16v">(iv)), "must be i16v, got i32v"],
    ["a result of another type", () => f.anyTrue(), "the kernel language has no operation f32.anyTrue"],
    ["a scalar seen as a vector", () => i.as("f32v"), "as(f32v) needs a vector, got i32"],
    ["a lane of halves", () => hv.lane(0), "lane() needs f32v or i32v, got i16v"],
    ["a lane below the first", () => fv.lane(-1), "lane must be a whole number below the target's lanes, got -1"],
    ["an address of another type", () => k.load("f32", disguised<"i32">(f)), "an address must be i32, got f32"],
    ["an offset that is none", () => k.load("f32", i, -4), "offset must be a number of bytes, got -4"],
    ["a store of another type", () => k.store("f32", i, disguised<"f32">(i)), "the value of store f32 must be f32"],
    [
      "a variable of another type",
      () => k.var("f32", disguised<"f32">(i)),
      "variable of type f32 must be f32, got i32",
    ],
    ["a condition of another type", () => k.if(disguised<"i32">(f), () => {}), "the condition of if must be i32"],
    ["a condition of lanes", () => k.while(disguised<"i32">(iv), () => {}), "the condition of while must be i32"],
    [
      "a bound of another type",
      () => k.for(0, disguised<"i32">(f), 1, () => {}),
      "the end of for must be i32, got f32",
    ],
    ["a loop that never ends", () => k.for(0, 4, 0, () => {}), "the step of for must be positive, got 0"],
    ["an atomic float", () => k.atomicAdd(i, disguised<"i32">(f)), "the value of atomicAdd must be i32, got f32"],
    ["half an integer", () => iv.add(0.5), "a constant of type i32v must be an integer of 32 bits, got 0.5"],
    [
      "an integer too large",
      () => k.i32(2 ** 32),
      "a constant of type i32 must be an integer of 32 bits, got 4294967296",
    ],
    ["a byte too large", () => k.all("i8v", 256), "a constant of type i8v must be an integer of 8 bits, got 256"],
    [
      "a half too small",
      () => k.all("i16v", -32769),
      "a constant of type i16v must be an integer of 16 bits, got -32769",
    ],
    ["too few bytes", () => k.bytes([1, 2, 3]), "bytes needs 16 bytes, got 3"],
  ])("is refused for %s", (_what, build, message) => {
    expect(build).toThrow(KernelTypeError);
    expect(build).toThrow(message);
  });
});

describe("values", () => {
  it("become trees that say what was written", () => {
    expect(i.add(2).expression).toEqual({
      kind: "operation",
      type: "i32",
      operation: "i32.add",
      args: [i.expression, { kind: "constant", type: "i32", value: 2 }],
    });
    expect(k.f32(0.1).expression).toEqual({ kind: "constant", type: "f32", value: Math.fround(0.1) });
  });
  it("see any vector's bits as another's", () => {
    for (const vector of [fv, iv, hv, bv]) {
      for (const type of ["f32v", "i32v", "i16v", "i8v"] as const) expect(vector.as(type).type).toBe(type);
    }
  });
});
