import { describe, expect, it } from "vitest";
import wabt from "wabt";
import { defineKernel, type KernelDefinition, type ParameterTypes } from "../builder.ts";
import { exp2 } from "../math.ts";
import { compileWasm } from "./compile.ts";
import type { WasmFeatures } from "./features.ts";

const { readWasm } = await wabt();
const relaxed: WasmFeatures = { relaxedSimd: true, sharedMemory: true };
const plain: WasmFeatures = { relaxedSimd: false, sharedMemory: false };

function textOf<P extends ParameterTypes>(definition: KernelDefinition<null, P>, features: WasmFeatures): string {
  const { bytes } = compileWasm(definition, null, features);
  const module = readWasm(bytes, { simd: true, threads: true, relaxed_simd: true, sat_float_to_int: true });
  const text = module.toText({ foldExprs: true, inlineExport: true });
  module.destroy();
  return text;
}

/** x[i] = x[i] * factor + 1, four at a time. */
const scaleRows = defineKernel({
  name: "scaleRows",
  params: { x: "pointer", factor: "f32" },
  build(k, _spec: null, p) {
    k.forTasks((task) => {
      const at = k.let(p.x.add(task.mul(k.lanes * 4)));
      k.store("f32v", at, k.load("f32v", at).fma(k.splat(p.factor), 1));
    });
  },
});

/** Operations that take several instructions, or others with relaxed SIMD. */
const compounds = defineKernel({
  name: "compounds",
  params: { x: "pointer", limit: "f32" },
  build(k, _spec: null, p) {
    const pairs = k.load("i8v", p.x).dotPairsU7(k.load("i8v", p.x, 16));
    k.store("i32v", p.x, pairs.dotPairs(k.all("i16v", 1)));
    k.store("f32", p.x, k.sumLanes(k.load("f32v", p.x)).max(p.limit));
    k.store("i32v to u16", p.x, k.load("i32v", p.x).shrU(16));
  },
});

const exponential = defineKernel({
  name: "exponential",
  params: { x: "pointer" },
  build(k, _spec: null, p) {
    k.store("f32v", p.x, exp2(k, k.load("f32v", p.x)));
  },
});

describe("the text of", () => {
  it("a loop, with relaxed SIMD and shared memory", () => {
    expect(textOf(scaleRows, relaxed)).toMatchInlineSnapshot(`
      "(module
        (type (;0;) (func (param i32 i32 i32 i32)))
        (import "env" "memory" (memory (;0;) 0 65536 shared))
        (func (;0;) (export "run") (type 0) (param i32 i32 i32 i32)
          (local i32 f32 i32 i32 i32 v128)
          (local.set 9
            (v128.const i32x4 0x3f800000 0x3f800000 0x3f800000 0x3f800000))
          (local.set 4
            (i32.load align=1
              (local.get 0)))
          (local.set 5
            (f32.load offset=4 align=1
              (local.get 0)))
          (local.set 7
            (local.get 2))
          (if  ;; label = @1
            (i32.lt_s
              (local.tee 6
                (local.get 1))
              (local.get 7))
            (then
              (loop  ;; label = @2
                (local.set 8
                  (i32.add
                    (local.get 4)
                    (i32.mul
                      (local.get 6)
                      (i32.const 16))))
                (v128.store align=1
                  (local.get 8)
                  (f32x4.relaxed_madd
                    (v128.load align=1
                      (local.get 8))
                    (f32x4.splat
                      (local.get 5))
                    (local.get 9)))
                (br_if 0 (;@2;)
                  (i32.lt_s
                    (local.tee 6
                      (i32.add
                        (local.get 6)
                        (i32.const 1)))
                    (local.get 7))))))))
      "
    `);
  });
  it("compound operations without relaxed SIMD", () => {
    expect(textOf(compounds, plain)).toMatchInlineSnapshot(`
      "(module
        (type (;0;) (func (param i32 i32 i32 i32)))
        (import "env" "memory" (memory (;0;) 0 65536))
        (func (;0;) (export "run") (type 0) (param i32 i32 i32 i32)
          (local i32 f32 v128 v128 v128 v128 v128 v128 v128 v128 f32 v128)
          (local.set 13
            (v128.const i32x4 0x00010001 0x00010001 0x00010001 0x00010001))
          (local.set 4
            (i32.load align=1
              (local.get 0)))
          (local.set 5
            (f32.load offset=4 align=1
              (local.get 0)))
          (local.get 4)
          (local.set 9
            (v128.load align=1
              (local.get 4)))
          (local.set 10
            (v128.load offset=16 align=1
              (local.get 4)))
          (local.set 11
            (i16x8.extmul_low_i8x16_s
              (local.get 9)
              (local.get 10)))
          (local.set 12
            (i16x8.extmul_high_i8x16_s
              (local.get 9)
              (local.get 10)))
          (i32x4.dot_i16x8_s
            (i16x8.add
              (i8x16.shuffle 0 1 4 5 8 9 12 13 16 17 20 21 24 25 28 29
                (local.get 11)
                (local.get 12))
              (i8x16.shuffle 2 3 6 7 10 11 14 15 18 19 22 23 26 27 30 31
                (local.get 11)
                (local.get 12)))
            (local.get 13))
          (v128.store align=1)
          (local.set 6
            (v128.load align=1
              (local.get 4)))
          (local.set 7
            (f32x4.add
              (i8x16.shuffle 0 1 2 3 8 9 10 11 16 17 18 19 24 25 26 27
                (local.get 6)
                (local.get 6))
              (i8x16.shuffle 4 5 6 7 12 13 14 15 20 21 22 23 28 29 30 31
                (local.get 6)
                (local.get 6))))
          (local.set 8
            (f32x4.add
              (i8x16.shuffle 0 1 2 3 8 9 10 11 16 17 18 19 24 25 26 27
                (local.get 7)
                (local.get 7))
              (i8x16.shuffle 4 5 6 7 12 13 14 15 20 21 22 23 28 29 30 31
                (local.get 7)
                (local.get 7))))
          (local.get 4)
          (local.set 14
            (f32x4.extract_lane 0
              (local.get 8)))
          (select
            (local.get 5)
            (local.get 14)
            (f32.lt
              (local.get 14)
              (local.get 5)))
          (f32.store align=1)
          (local.get 4)
          (local.set 15
            (i32x4.shr_u
              (v128.load align=1
                (local.get 4))
              (i32.const 16)))
          (i16x8.narrow_i32x4_u
            (local.get 15)
            (local.get 15))
          (v128.store64_lane align=1 0)))
      "
    `);
  });
  it("an exponential, with relaxed SIMD", () => {
    expect(textOf(exponential, { relaxedSimd: true, sharedMemory: false })).toMatchInlineSnapshot(`
      "(module
        (type (;0;) (func (param i32 i32 i32 i32)))
        (import "env" "memory" (memory (;0;) 0 65536))
        (func (;0;) (export "run") (type 0) (param i32 i32 i32 i32)
          (local i32 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128 v128)
          (local.set 10
            (v128.const i32x4 0xc2fe0000 0xc2fe0000 0xc2fe0000 0xc2fe0000))
          (local.set 11
            (v128.const i32x4 0x43000000 0x43000000 0x43000000 0x43000000))
          (local.set 12
            (v128.const i32x4 0x4b400000 0x4b400000 0x4b400000 0x4b400000))
          (local.set 13
            (v128.const i32x4 0x3920fdde 0x3920fdde 0x3920fdde 0x3920fdde))
          (local.set 14
            (v128.const i32x4 0x3aaf9f29 0x3aaf9f29 0x3aaf9f29 0x3aaf9f29))
          (local.set 15
            (v128.const i32x4 0x3c1d96a6 0x3c1d96a6 0x3c1d96a6 0x3c1d96a6))
          (local.set 16
            (v128.const i32x4 0x3d635774 0x3d635774 0x3d635774 0x3d635774))
          (local.set 17
            (v128.const i32x4 0x3e75fdee 0x3e75fdee 0x3e75fdee 0x3e75fdee))
          (local.set 18
            (v128.const i32x4 0x3f317218 0x3f317218 0x3f317218 0x3f317218))
          (local.set 19
            (v128.const i32x4 0x3f800000 0x3f800000 0x3f800000 0x3f800000))
          (local.set 20
            (v128.const i32x4 0x0000007f 0x0000007f 0x0000007f 0x0000007f))
          (local.set 4
            (i32.load align=1
              (local.get 0)))
          (local.set 5
            (f32x4.pmin
              (f32x4.pmax
                (v128.load align=1
                  (local.get 4))
                (local.get 10))
              (local.get 11)))
          (local.set 6
            (f32x4.add
              (local.get 5)
              (local.get 12)))
          (local.set 7
            (f32x4.sub
              (local.get 5)
              (f32x4.sub
                (local.get 6)
                (local.get 12))))
          (local.set 8
            (f32x4.relaxed_madd
              (f32x4.relaxed_madd
                (f32x4.relaxed_madd
                  (f32x4.relaxed_madd
                    (f32x4.relaxed_madd
                      (f32x4.relaxed_madd
                        (local.get 13)
                        (local.get 7)
                        (local.get 14))
                      (local.get 7)
                      (local.get 15))
                    (local.get 7)
                    (local.get 16))
                  (local.get 7)
                  (local.get 17))
                (local.get 7)
                (local.get 18))
              (local.get 7)
              (local.get 19)))
          (local.set 9
            (f32x4.mul
              (local.get 8)
              (i32x4.shl
                (i32x4.add
                  (local.get 6)
                  (local.get 20))
                (i32.const 23))))
          (v128.store align=1
            (local.get 4)
            (local.get 9))))
      "
    `);
  });
});

describe("ByteWriter's integers, as the modules use them", () => {
  it("reach from the least to the largest i32", () => {
    const numbers = [0, -1, 63, 64, -64, -65, 8191, 8192, -8193, 2 ** 31 - 1, -(2 ** 31)];
    const kernel = defineKernel({
      name: "numbers",
      params: { out: "pointer" },
      build(k, _spec: null, p) {
        for (const [i, number] of numbers.entries()) k.store("i32", p.out, number, i * 0x4001);
      },
    });
    const text = textOf(kernel, plain);
    for (const [i, number] of numbers.entries()) {
      expect(text).toContain(i === 0 ? "(i32.store align=1" : `(i32.store offset=${i * 0x4001} align=1`);
      expect(text).toContain(`(i32.const ${number})`);
    }
  });
});
