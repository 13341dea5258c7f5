/** The kernel that copies heads, and the function that records it. */
import { defineKernel } from "../../kernels/index.ts";
import { forLanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { type CopyHeadsArgs, type CopyHeadsSpec, checkCopyHeads } from "./contract.ts";

/** Elements worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 4096;

/** One task is one token. */
export const copyHeadsKernel = defineKernel({
  name: "copyHeads",
  params: {
    x: "pointer",
    out: "pointer",
    numHeads: "i32",
    xRowBytes: "i32",
    xHeadBytes: "i32",
    outRowBytes: "i32",
    outHeadBytes: "i32",
    factor: "f32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { channels }: CopyHeadsSpec, p) {
    const factor = k.let(k.splat(p.factor));
    k.forTasks((token) => {
      const xRow = k.let(p.x.add(token.mul(p.xRowBytes)));
      const outRow = k.let(p.out.add(token.mul(p.outRowBytes)));
      k.for(0, p.numHeads, 1, (head) => {
        const from = k.let(xRow.add(head.mul(p.xHeadBytes)));
        const to = k.let(outRow.add(head.mul(p.outHeadBytes)));
        forLanes(k, channels, 1, ({ load, store }) => store(to, load(from).mul(factor)));
      });
    });
  },
});

/** Records the copy. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordCopyHeads(
  { device, commands }: Recorder,
  spec: CopyHeadsSpec,
  args: CopyHeadsArgs,
  options: { readonly overlap?: boolean } = {},
): void {
  const { numTokens, numHeads, x, out } = checkCopyHeads(spec, args);
  if (numTokens === 0 || numHeads === 0) return;
  commands.launch(
    device.compile(copyHeadsKernel, spec),
    {
      x: args.x.pointer,
      out: args.out.pointer,
      numHeads,
      xRowBytes: x.row * 4,
      xHeadBytes: x.head * 4,
      outRowBytes: out.row * 4,
      outHeadBytes: out.head * 4,
      factor: args.factor ?? 1,
    },
    numTokens,
    { grain: Math.max(1, Math.floor(GRAIN_ELEMENTS / (numHeads * spec.channels))), overlap: options.overlap },
  );
}
