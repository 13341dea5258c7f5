/** The kernel that gathers slots, and the function that records it. */
import { defineKernel } from "../../kernels/index.ts";
import { storeExactly } from "../attention/dims.ts";
import { rowPitch } from "../attention/registerTiles.ts";
import { rowDecoder } from "../attention/rowDecoders.ts";
import { storageBytes } from "../attention/storage.ts";
import type { Recorder } from "../recorder.ts";
import { checkGatherSlots, type GatherSlotsArgs, type GatherSlotsSpec } from "./contract.ts";

/** One task is one row: decoded in scratch memory, because a decoder writes past the last channel. */
export const gatherSlotsKernel = defineKernel({
  name: "gatherSlots",
  params: {
    pages: "pointer",
    scales: "pointer",
    slots: "pointer",
    out: "pointer",
    pageBytes: "i32",
    slotBytes: "i32",
    scalePageBytes: "i32",
    scaleSlotBytes: "i32",
    outRowBytes: "i32",
  },
  scratchBytes: ({ channels }: GatherSlotsSpec) => rowPitch(channels),
  build(k, { channels, pageSize, storage }, p) {
    const decode = rowDecoder(k, storage);
    k.forTasks((row) => {
      const slot = k.let(k.load("i32", p.slots.add(row.shl(2))));
      const page = k.let(slot.divU(pageSize));
      const offset = k.let(slot.sub(page.mul(pageSize)));
      const from = k.let(p.pages.add(page.mul(p.pageBytes)).add(offset.mul(p.slotBytes)));
      const scales = k.let(p.scales.add(page.mul(p.scalePageBytes)).add(offset.mul(p.scaleSlotBytes)));
      decode({ from, scales, to: k.scratch }, channels);
      storeExactly(k, k.let(p.out.add(row.mul(p.outRowBytes))), channels, {
        vector: (d) => k.load("f32v", k.scratch.add(d)),
        scalar: (d) => k.load("f32", k.scratch.add(d)),
      });
    });
  },
});

/** Records the gather. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordGatherSlots(
  { device, commands }: Recorder,
  spec: GatherSlotsSpec,
  args: GatherSlotsArgs,
  options: { readonly overlap?: boolean } = {},
): void {
  const { numRows, outStride } = checkGatherSlots(spec, args);
  if (numRows === 0) return;
  const { strides, scales = 0, scaleStrides } = args;
  const unit = storageBytes(spec.storage);
  commands.launch(
    device.compile(gatherSlotsKernel, spec),
    {
      pages: args.pages,
      scales,
      slots: args.slots.pointer,
      out: args.out.pointer,
      pageBytes: strides.page * unit,
      slotBytes: strides.slot * unit,
      scalePageBytes: (scaleStrides?.page ?? 0) * 4,
      scaleSlotBytes: (scaleStrides?.slot ?? 0) * 4,
      outRowBytes: outStride * 4,
    },
    numRows,
    { grain: 8, overlap: options.overlap },
  );
}
