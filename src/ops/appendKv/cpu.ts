/** The append kernel and the function that records it. How a row becomes codes is in rowEncoder.ts. */
import { defineKernel, type Value } from "../../kernels/index.ts";
import { elementAddress } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { type AppendKvArgs, type AppendKvNames, type AppendKvSpec, checkAppendKv } from "./contract.ts";
import { rowBlocksBytes } from "./rowBlocks.ts";
import { rowEncoder } from "./rowEncoder.ts";

/** Elements worth fetching as one piece of work. */
const GRAIN_ELEMENTS = 4096;

/** What is compiled for: a spec, and whether keys and values are divided by a scale. */
interface AppendKvKernelSpec extends AppendKvSpec {
  readonly isScaled?: boolean;
}

/** One task is one token: the rows of all heads with their scales, of its key and then of its value. */
export const appendKvKernel = defineKernel({
  name: "appendKv",
  params: {
    slotMapping: "pointer",
    numSlots: "i32",
    pageSize: "i32",
    k: "pointer",
    kStride: "i32",
    kScale: "f32",
    kPages: "pointer",
    kPageBytes: "i32",
    kSlotBytes: "i32",
    kHeadBytes: "i32",
    kScales: "pointer",
    kScalePageBytes: "i32",
    kScaleSlotBytes: "i32",
    kScaleHeadBytes: "i32",
    v: "pointer",
    vStride: "i32",
    vScale: "f32",
    vPages: "pointer",
    vPageBytes: "i32",
    vSlotBytes: "i32",
    vHeadBytes: "i32",
    vScales: "pointer",
    vScalePageBytes: "i32",
    vScaleSlotBytes: "i32",
    vScaleHeadBytes: "i32",
  },
  scratchBytes: (_spec, target) => rowBlocksBytes(target),
  build(k, spec: AppendKvKernelSpec, p) {
    const { numKvHeads, headDim, headDimV = headDim, storage, valueStorage = storage, encoding, isScaled } = spec;
    const encodeKey = rowEncoder(k, { storage, ...encoding }, headDim, {
      scratch: k.scratch,
      divisor: isScaled ? p.kScale : undefined,
    });
    const encodeValue =
      headDimV > 0 &&
      rowEncoder(k, { storage: valueStorage, ...encoding }, headDimV, {
        scratch: k.scratch,
        divisor: isScaled ? p.vScale : undefined,
      });
    const at = (
      page: Value<"i32">,
      offset: Value<"i32">,
      base: Value<"i32">,
      pageBytes: Value<"i32">,
      slotBytes: Value<"i32">,
    ): Value<"i32"> => k.let(base.add(page.mul(pageBytes)).add(offset.mul(slotBytes)));
    k.forTasks((token) => {
      const slot = k.let(k.load("i32", p.slotMapping.add(token.shl(2))));
      // Unsigned, so that -1 is past the end like every other value that is no slot.
      k.if(slot.ltU(p.numSlots), () => {
        const page = k.let(slot.divU(p.pageSize));
        const offset = k.let(slot.sub(page.mul(p.pageSize)));
        const key = elementAddress(k, p.k, token, p.kStride);
        const keyRows = at(page, offset, p.kPages, p.kPageBytes, p.kSlotBytes);
        const keyScales = at(page, offset, p.kScales, p.kScalePageBytes, p.kScaleSlotBytes);
        k.for(0, numKvHeads, 1, (head) =>
          encodeKey(
            k.let(key.add(head.mul(headDim * 4))),
            k.let(keyRows.add(head.mul(p.kHeadBytes))),
            k.let(keyScales.add(head.mul(p.kScaleHeadBytes))),
          ),
        );
        if (!encodeValue) return;
        const value = elementAddress(k, p.v, token, p.vStride);
        const valueRows = at(page, offset, p.vPages, p.vPageBytes, p.vSlotBytes);
        const valueScales = at(page, offset, p.vScales, p.vScalePageBytes, p.vScaleSlotBytes);
        k.for(0, numKvHeads, 1, (head) =>
          encodeValue(
            k.let(value.add(head.mul(headDimV * 4))),
            k.let(valueRows.add(head.mul(p.vHeadBytes))),
            k.let(valueScales.add(head.mul(p.vScaleHeadBytes))),
          ),
        );
      });
    });
  },
});

/**
 * Records the append of one layer. Throws ShapeError or ArgumentError naming the argument that does not fit.
 *
 * @param names What errors call the arguments, where keys and values are something else to the caller.
 */
export function recordAppendKv(
  { device, commands }: Recorder,
  spec: AppendKvSpec,
  args: AppendKvArgs,
  names?: AppendKvNames,
): void {
  const { numTokens, kStride, vStride, kPages, vPages } = checkAppendKv(spec, args, names);
  if (numTokens === 0) return;
  const isScaled = args.kScale !== undefined || args.vScale !== undefined;
  commands.launch(
    device.compile(appendKvKernel, { ...spec, isScaled }),
    {
      slotMapping: args.slotMapping.pointer,
      numSlots: kPages.numSlots,
      pageSize: kPages.pageSize,
      k: args.k.pointer,
      kStride,
      kScale: args.kScale ?? 1,
      kPages: kPages.pointer,
      kPageBytes: kPages.pageBytes,
      kSlotBytes: kPages.slotBytes,
      kHeadBytes: kPages.headBytes,
      kScales: kPages.scales.pointer,
      kScalePageBytes: kPages.scales.pageBytes,
      kScaleSlotBytes: kPages.scales.slotBytes,
      kScaleHeadBytes: kPages.scales.headBytes,
      v: args.v?.pointer ?? 0,
      vStride,
      vScale: args.vScale ?? 1,
      vPages: vPages.pointer,
      vPageBytes: vPages.pageBytes,
      vSlotBytes: vPages.slotBytes,
      vHeadBytes: vPages.headBytes,
      vScales: vPages.scales.pointer,
      vScalePageBytes: vPages.scales.pageBytes,
      vScaleSlotBytes: vPages.scales.slotBytes,
      vScaleHeadBytes: vPages.scales.headBytes,
    },
    numTokens,
    { grain: Math.max(1, Math.floor(GRAIN_ELEMENTS / (2 * spec.numKvHeads * spec.headDim))) },
  );
}
