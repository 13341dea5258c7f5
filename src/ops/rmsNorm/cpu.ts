/** The RMS norm kernel and the function that records it. */
import { defineKernel } from "../../kernels/index.ts";
import { elementAddress, forLanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { checkRmsNorm, type RmsNormArgs, type RmsNormSpec } from "./contract.ts";

/** Registers summed side by side: hides the latency of the addition, and shortens each chain of roundings to dim / 16. */
const NUM_SUMS = 4;

/** Elements worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 2048;

/** One task is one row of all its heads. */
export const rmsNormKernel = defineKernel({
  name: "rmsNorm",
  params: {
    x: "pointer",
    weight: "pointer",
    out: "pointer",
    residual: "pointer",
    xStride: "i32",
    outStride: "i32",
    residualStride: "i32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { dim, eps, weightOffset, residual, numHeads = 1 }: RmsNormSpec, p) {
    k.forTasks((row) => {
      const xRow = elementAddress(k, p.x, row, p.xStride);
      const outRow = elementAddress(k, p.out, row, p.outStride);
      const residualRow = elementAddress(k, p.residual, row, p.residualStride);
      k.for(0, numHeads * dim * 4, dim * 4, (head) => {
        const x = k.let(xRow.add(head));
        const sums = Array.from({ length: NUM_SUMS }, () => k.var("f32v", 0));
        forLanes(k, dim, NUM_SUMS, ({ load, slot }) => {
          const value = k.let(load(x));
          sums[slot].set(value.fma(value, sums[slot].value));
        });
        const squares = k.sumLanes(sums[0].value.add(sums[1].value).add(sums[2].value.add(sums[3].value)));
        const scale = k.let(k.splat(k.f32(1).div(squares.div(dim).add(eps).sqrt())));
        const out = k.let(outRow.add(head));
        const added = k.let(residualRow.add(head));
        forLanes(k, dim, 2, ({ load, store }) => {
          const weight = weightOffset === 0 ? load(p.weight) : load(p.weight).add(weightOffset);
          const normed = k.let(load(x).mul(scale).mul(weight));
          store(out, residual === "add" ? load(added).add(normed) : normed);
        });
      });
    });
  },
});

/** Records the norm of rows. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordRmsNorm({ device, commands }: Recorder, spec: RmsNormSpec, args: RmsNormArgs): void {
  const { numRows, xStride, outStride, residualStride } = checkRmsNorm(spec, args);
  if (numRows === 0) return;
  commands.launch(
    device.compile(rmsNormKernel, spec),
    {
      x: args.x.pointer,
      weight: args.weight.pointer,
      out: args.out.pointer,
      residual: args.residual?.pointer ?? 0,
      xStride,
      outStride,
      residualStride,
    },
    numRows,
    { grain: Math.max(1, Math.floor(GRAIN_ELEMENTS / (spec.dim * (spec.numHeads ?? 1)))) },
  );
}
