/** The gather kernel and the function that records it. */

import { defineKernel } from "../../kernels/index.ts";
import type { Recorder } from "../recorder.ts";
import { checkGatherRows, type GatherRowsArgs } from "./contract.ts";

/** A task is a row. */
export const gatherRowsKernel = defineKernel({
  name: "gatherRows",
  params: { x: "pointer", indices: "pointer", out: "pointer" },
  build(k, { columns }: { readonly columns: number }, p) {
    const rowBytes = columns * 4;
    const vectorBytes = k.lanes * 4;
    const whole = rowBytes - (rowBytes % vectorBytes);
    k.forTasks((row) => {
      const from = k.let(p.x.add(k.load("i32", p.indices.add(row.mul(4))).mul(rowBytes)));
      const to = k.let(p.out.add(row.mul(rowBytes)));
      k.for(0, whole, vectorBytes, (at) => k.store("f32v", to.add(at), k.load("f32v", from.add(at))));
      for (let at = whole; at < rowBytes; at += 4) k.store("f32", to, k.load("f32", from, at), at);
    });
  },
});

/** Records a gather. Throws ArgumentError or ShapeError naming the argument that does not fit. */
export function recordGatherRows({ device, commands }: Recorder, args: GatherRowsArgs): void {
  checkGatherRows(args);
  const { x, indices, out, columns, numRows } = args;
  commands.launch(device.compile(gatherRowsKernel, { columns }), { x, indices, out }, numRows, { grain: 4 });
}
