import { describe, expect, it } from "vitest";
import { defineKernel, KernelBuilder } from "./builder.ts";
import { printKernel } from "./print.ts";

const everything = defineKernel({
  name: "everything",
  params: { x: "pointer", count: "i32", factor: "f32" },
  scratchBytes: (_spec: null, { lanes }) => 16 * lanes,
  build(k, _spec: null, p) {
    k.forTasks((task) => {
      const at = k.let(p.x.add(task.mul(4)));
      const left = k.var("i32", p.count);
      k.while(left.value.gt(0), () => {
        left.set(left.value.sub(1));
        k.store("f32v", at, k.loadSplatF32(at, 8).fma(k.splat(p.factor), 0.5), 16);
      });
      k.if(
        k.atomicAdd(p.x, 1).eq(0),
        () => k.store("u8", k.scratch, k.laneIndices().lane(1)),
        () => k.store("i32v to u16", at, k.load("u16 to i32v", at).and(0x7fff)),
      );
    });
  },
});

describe("printKernel", () => {
  it("says what the tree says", () => {
    expect(printKernel(KernelBuilder.tree(everything, null, { lanes: 4 }))).toMatchInlineSnapshot(`
      "kernel everything(x: pointer, count: i32, factor: f32)  // 64 bytes of scratch
        v4: i32 = i32[params]
        v5: i32 = i32[params + 4]
        v6: f32 = f32[params + 8]
        v8: i32 = taskEnd
        for v7 = taskBegin to v8 by 1
          v9: i32 = i32.add(v4, i32.mul(v7, 4))
          v10: i32 = v5
          while i32.gt(v10, 0)
            v10: i32 = i32.sub(v10, 1)
            f32v[v9 + 16] = f32v.fma(as.f32v(splat32[v9 + 8]), f32v.splat(v6), f32v(0000003f0000003f0000003f0000003f))
          v11 = atomicAdd([v4], 1)
          if i32.eq(v11, 0)
            u8[scratch] = laneIndices.1
          else
            i32v to u16[v9] = i32v.and(u16 to i32v[v9], i32v(ff7f0000ff7f0000ff7f0000ff7f0000))
      "
    `);
  });
});
