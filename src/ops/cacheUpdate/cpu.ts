/** The kernel that writes slices, and the functions that record the updates of a cache. */
import { defineKernel, type KernelBuilder } from "../../kernels/index.ts";
import { type AppendKvArgs, type AppendKvSpec, recordAppendKv } from "../appendKv/index.ts";
import { type Address, rowBlocksBytes } from "../appendKv/rowBlocks.ts";
import { type EncodeRow, rowEncoder } from "../appendKv/rowEncoder.ts";
import { storageBytes } from "../attention/storage.ts";
import type { Recorder } from "../recorder.ts";
import { checkKvCacheUpdate, type KvCacheUpdateArgs, type KvCacheUpdateSpec } from "./contract.ts";

/** One task is one slice: all heads of its rows, with their scales. */
export const kvCacheUpdateKernel = defineKernel({
  name: "kvCacheUpdate",
  params: {
    newKv: "pointer",
    numTokens: "i32",
    slices: "pointer",
    capacity: "i32",
    numSlots: "i32",
    pageSize: "i32",
    pages: "pointer",
    pageBytes: "i32",
    slotBytes: "i32",
    headBytes: "i32",
    scales: "pointer",
    scalePageBytes: "i32",
    scaleSlotBytes: "i32",
    scaleHeadBytes: "i32",
  },
  scratchBytes: (_spec, target) => rowBlocksBytes(target),
  build(k, { numHeads, headDim, storage, source = "f32", encoding }: KvCacheUpdateSpec, p) {
    const headBytes = headDim * storageBytes(source);
    const store =
      source === "f32"
        ? rowEncoder(k, { storage, ...encoding }, headDim, { scratch: k.scratch })
        : copyRow(k, headBytes);
    k.forTasks((slice) => {
      const column = k.let(p.slices.add(slice.shl(2)));
      const rowOf = (row: number) => k.let(k.load("i32", column.add(p.capacity.mul(4 * row))));
      const [cacheStart, newStart, length] = [rowOf(0), rowOf(1), rowOf(2)];
      k.for(0, length, 1, (i) => {
        const slot = k.let(cacheStart.add(i));
        const token = k.let(newStart.add(i));
        // The device's slices may differ from those that were checked; they must not reach foreign memory.
        k.if(slot.ltU(p.numSlots).and(token.ltU(p.numTokens)), () => {
          const page = k.let(slot.divU(p.pageSize));
          const offset = k.let(slot.sub(page.mul(p.pageSize)));
          const from = k.let(p.newKv.add(token.mul(numHeads * headBytes)));
          const to = k.let(p.pages.add(page.mul(p.pageBytes)).add(offset.mul(p.slotBytes)));
          const scales = k.let(p.scales.add(page.mul(p.scalePageBytes)).add(offset.mul(p.scaleSlotBytes)));
          k.for(0, numHeads, 1, (head) =>
            store(
              k.let(from.add(head.mul(headBytes))),
              k.let(to.add(head.mul(p.headBytes))),
              k.let(scales.add(head.mul(p.scaleHeadBytes))),
            ),
          );
        });
      });
    });
  },
});

/** Copies rows of so many bytes as they are. */
function copyRow(k: KernelBuilder, numBytes: number): EncodeRow {
  const width = 4 * k.lanes;
  const whole = numBytes - (numBytes % width);
  return (from: Address, to: Address) => {
    k.for(0, whole, width, (at) => k.store("i32v", to.add(at), k.load("i32v", from.add(at))));
    k.for(whole, numBytes, 1, (at) => k.store("u8", to.add(at), k.load("u8", from.add(at))));
  };
}

/** Records the update of one layer's cache. Throws ShapeError or ArgumentError naming the argument or the slice that does not fit. */
export function recordKvCacheUpdate(
  { device, commands }: Recorder,
  spec: KvCacheUpdateSpec,
  args: KvCacheUpdateArgs,
): void {
  const { numTokens, capacity, cache } = checkKvCacheUpdate(spec, args);
  commands.launch(
    device.compile(kvCacheUpdateKernel, spec),
    {
      newKv: args.newKv.pointer,
      numTokens,
      slices: args.slices.pointer,
      capacity,
      numSlots: cache.numSlots,
      pageSize: cache.pageSize,
      pages: cache.pointer,
      pageBytes: cache.pageBytes,
      slotBytes: cache.slotBytes,
      headBytes: cache.headBytes,
      scales: cache.scales.pointer,
      scalePageBytes: cache.scales.pageBytes,
      scaleSlotBytes: cache.scales.slotBytes,
      scaleHeadBytes: cache.scales.headBytes,
    },
    args.numSlices,
  );
}

/** vLLM's reshape_and_cache by its own names: key and value [tokens, numKvHeads, headDim] go to their slots, -1 is skipped. */
export interface ReshapeAndCacheArgs {
  readonly key: AppendKvArgs["k"];
  readonly value: AppendKvArgs["k"];
  readonly keyCache: AppendKvArgs["kPages"];
  readonly valueCache: AppendKvArgs["kPages"];
  readonly slotMapping: AppendKvArgs["slotMapping"];
  /** What keys and values are divided by before they are stored. */
  readonly kScale?: number;
  readonly vScale?: number;
}

/** Records it: an `appendKv`. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordReshapeAndCache(recorder: Recorder, spec: AppendKvSpec, args: ReshapeAndCacheArgs): void {
  const { key: k, value: v, keyCache: kPages, valueCache: vPages, slotMapping, kScale, vScale } = args;
  recordAppendKv(recorder, spec, { k, v, kPages, vPages, slotMapping, kScale, vScale }, reshapeNames);
}

const reshapeNames = {
  k: "key",
  v: "value",
  kPages: "keyCache",
  vPages: "valueCache",
  headDim: "headDim",
  headDimV: "headDimV",
};
