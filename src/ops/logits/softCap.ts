/** The soft cap's kernel and the function that records it. */
import { defineKernel, tanh } from "../../kernels/index.ts";
import { CHUNK_ELEMENTS, rowChunkTasks } from "../elementwise/cpu.ts";
import { elementAddress, forLanes, forRowChunks, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { checkSoftCap, type SoftCapArgs } from "./contract.ts";

export const softCapKernel = defineKernel({
  name: "softCap",
  params: { logits: "pointer", length: "i32", stride: "i32", cap: "f32" },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, _spec: Readonly<Record<string, never>>, p) {
    const cap = k.let(k.splat(p.cap));
    const inverse = k.let(k.splat(k.f32(1).div(p.cap)));
    forRowChunks(k, p.length, CHUNK_ELEMENTS, (row, first, count) => {
      const logits = elementAddress(k, p.logits, row, p.stride, first);
      forLanes(k, count, 2, ({ load, store }) => {
        store(logits, tanh(k, k.let(load(logits).mul(inverse))).mul(cap));
      });
    });
  },
});

/** Records x = cap * tanh(x / cap) in place. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordSoftCap({ device, commands }: Recorder, args: SoftCapArgs): void {
  const { numRows, length, stride } = checkSoftCap(args);
  if (numRows === 0) return;
  const { numTasks, grain } = rowChunkTasks(numRows, length);
  const params = { logits: args.logits.pointer, length, stride, cap: args.cap };
  commands.launch(device.compile(softCapKernel, {}), params, numTasks, { grain });
}
