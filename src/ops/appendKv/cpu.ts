/** The append kernel and the function that records it. */
import { defineKernel, f32ToF16, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { elementAddress, forLanes, type Lanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { type AppendKvArgs, type AppendKvSpec, checkAppendKv, LARGEST_F16 } from "./contract.ts";

/** Elements worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 4096;

/** One task is one token: all heads of its key, then of its value. */
export const appendKvKernel = defineKernel({
  name: "appendKv",
  params: {
    k: "pointer",
    v: "pointer",
    kPages: "pointer",
    vPages: "pointer",
    slotMapping: "pointer",
    numSlots: "i32",
    kStride: "i32",
    vStride: "i32",
    kSlotStride: "i32",
    kHeadStride: "i32",
    vSlotStride: "i32",
    vHeadStride: "i32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { numKvHeads, headDim, storage }: AppendKvSpec, p) {
    const elementShift = storage === "f16" ? 1 : 2;
    const appendRow = (
      token: Value<"i32">,
      slot: Value<"i32">,
      from: { rows: Value<"i32">; stride: Value<"i32"> },
      to: { pages: Value<"i32">; slotStride: Value<"i32">; headStride: Value<"i32"> },
    ): void => {
      const row = elementAddress(k, from.rows, token, from.stride);
      const target = k.let(to.pages.add(slot.mul(to.slotStride).shl(elementShift)));
      k.for(0, numKvHeads, 1, (head) => {
        const source = k.let(row.add(head.mul(headDim * 4)));
        const out = k.let(target.add(head.mul(to.headStride).shl(elementShift)));
        forLanes(k, headDim, 2, (lanes) => storeElements(k, storage, lanes, source, out));
      });
    };
    k.forTasks((token) => {
      const slot = k.let(k.load("i32", p.slotMapping.add(token.shl(2))));
      // Unsigned, so that -1 is past the end like every other value that is no slot.
      k.if(slot.ltU(p.numSlots), () => {
        const kPages = { pages: p.kPages, slotStride: p.kSlotStride, headStride: p.kHeadStride };
        const vPages = { pages: p.vPages, slotStride: p.vSlotStride, headStride: p.vHeadStride };
        appendRow(token, slot, { rows: p.k, stride: p.kStride }, kPages);
        appendRow(token, slot, { rows: p.v, stride: p.vStride }, vPages);
      });
    });
  },
});

function storeElements(
  k: KernelBuilder,
  storage: AppendKvSpec["storage"],
  { load, store, storeHalves }: Lanes,
  source: Value<"i32">,
  out: Value<"i32">,
): void {
  if (storage === "f32") store(out, load(source));
  else storeHalves(out, f32ToF16(k, k.let(load(source).max(-LARGEST_F16).min(LARGEST_F16))));
}

/** Records the append of one layer. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordAppendKv({ device, commands }: Recorder, spec: AppendKvSpec, args: AppendKvArgs): void {
  const { numTokens, kStride, vStride, kPages, vPages } = checkAppendKv(spec, args);
  if (numTokens === 0) return;
  commands.launch(
    device.compile(appendKvKernel, spec),
    {
      k: args.k.pointer,
      v: args.v.pointer,
      kPages: args.kPages.pointer,
      vPages: args.vPages.pointer,
      slotMapping: args.slotMapping.pointer,
      numSlots: args.kPages.numSlots,
      kStride,
      vStride,
      kSlotStride: kPages.slotStride,
      kHeadStride: kPages.headStride,
      vSlotStride: vPages.slotStride,
      vHeadStride: vPages.headStride,
    },
    numTokens,
    { grain: Math.max(1, Math.floor(GRAIN_ELEMENTS / (2 * spec.numKvHeads * spec.headDim))) },
  );
}
