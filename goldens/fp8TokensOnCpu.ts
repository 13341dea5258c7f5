/** Runs the golden cases of FlashMLA's 656-byte tokens on the CPU device: appended to a cache of them, and gathered from it. */
import { fp8LatentStorage, fp8TokenLayout } from "../src/attention/mla/index.ts";
import type { CpuDevice } from "../src/devices/index.ts";
import { type AppendMlaSpec, mlaTokenPages, recordAppendMla } from "../src/ops/appendMla/index.ts";
import type { RowsTensor } from "../src/ops/elementwise/index.ts";
import { recordGatherSlots } from "../src/ops/gatherSlots/index.ts";
import { DeviceArrays } from "./deviceArrays.ts";
import type { NumberArray } from "./inputs.ts";
import { runOn } from "./storedRows.ts";

/** kv: [tokens, kvLoraRank + qkRopeHeadDim]. */
export async function fp8TokensOnCpu(
  shape: { readonly kvLoraRank: number; readonly qkRopeHeadDim: number },
  kv: NumberArray,
  device: CpuDevice,
): Promise<{ bytes: Uint8Array; decoded: Float32Array }> {
  const { kvLoraRank, qkRopeHeadDim } = shape;
  const { numBytes } = fp8TokenLayout(shape);
  const width = kvLoraRank + qkRopeHeadDim;
  const numTokens = kv.length / width;
  const arrays = new DeviceArrays(device);
  try {
    const parts = ({ pointer }: { pointer: number }): [ckv: RowsTensor, kpe: RowsTensor] => [
      { pointer, shape: [numTokens, kvLoraRank], rowStride: width, type: "f32" },
      { pointer: pointer + kvLoraRank * 4, shape: [numTokens, qkRopeHeadDim], rowStride: width, type: "f32" },
    ];
    const [ckv, kpe] = parts(arrays.f32([numTokens, width], kv));
    const decoded = arrays.empty([numTokens, width]);
    const slots = arrays.i32(Int32Array.from({ length: numTokens }, (_, slot) => slot));
    const { pointer } = arrays.empty([(numTokens * numBytes) / 4]);
    const spec: AppendMlaSpec = { ...shape, storage: fp8LatentStorage, ropeStorage: "bf16" };
    const { ckvPages, kpePages } = mlaTokenPages(spec, { pointer, numSlots: numTokens });
    await runOn(device, (recorder) => {
      recordAppendMla(recorder, spec, { ckv, kpe, ckvPages, kpePages, slotMapping: slots });
      const outputs = parts(decoded);
      for (const [i, pages] of [ckvPages, kpePages].entries()) {
        if (!pages) continue;
        const { slotStride: slot = 0, scales, type } = pages;
        recordGatherSlots(
          recorder,
          { channels: outputs[i].shape[1], pageSize: 1, storage: type },
          {
            pages: pages.pointer,
            strides: { page: slot, slot },
            scales: scales?.pointer,
            scaleStrides: { page: scales?.slotStride ?? 0, slot: 0 },
            slots,
            out: outputs[i],
          },
        );
      }
    });
    return { bytes: device.u8At(pointer, numTokens * numBytes).slice(), decoded: arrays.read(decoded) };
  } finally {
    arrays.free();
  }
}
