/** Runs the attention over latents of a golden case on the CPU device. */
import { allocateLatentCache, BatchPaluAttention, PaluLayer } from "../src/attention/palu/index.ts";
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import { encodeRows } from "../src/ops/attention/index.ts";
import type { NumberArray } from "./inputs.ts";
import type { PaluCall, PaluOutputs } from "./palu.ts";

export async function paluOnCpu(call: PaluCall, device: CpuDevice): Promise<PaluOutputs> {
  const { spec, ranks, batch } = call;
  const { numQHeads, headDim, storage, pageSize = 1 } = spec;
  const buffers: DeviceBuffer[] = [];
  const upload = (shape: readonly number[], values: NumberArray) => {
    const buffer = device.allocate(values.length * 4, "palu golden");
    buffers.push(buffer);
    device.f32(buffer).set(values);
    return { pointer: buffer.pointer, shape, type: "f32" } as const;
  };
  const keyBias = call.keyBias && Float32Array.from(call.keyBias);
  const layer = new PaluLayer(device, spec, { ...ranks, upK: call.upK, keyBias });
  const cache = allocateLatentCache(device, layer.layout, { storage, pageSize, numPages: batch.numPages });
  const attention = new BatchPaluAttention(device, spec);
  try {
    for (const [tensor, values] of [
      [cache.pages.k, call.kPages],
      [cache.pages.v, call.vPages],
    ] as const) {
      const { units } = encodeRows(storage, values, 1);
      const bytes = new Uint8Array(units.buffer, units.byteOffset, units.byteLength);
      device.u8At(tensor.pointer, bytes.length).set(bytes);
    }
    attention.plan(batch);
    const { ropeTable, alibiSlopes } = call;
    const { out, lse } = await attention.run({
      layer,
      cache,
      q: upload([batch.numRows, numQHeads, headDim], call.q),
      ropeTable: ropeTable && upload([ropeTable.length / headDim, headDim], ropeTable),
      alibiSlopes: alibiSlopes && upload([numQHeads], alibiSlopes),
    });
    if (!out.buffer || !lse?.buffer) throw new Error("the results were not allocated");
    buffers.push(out.buffer, lse.buffer);
    return {
      out: device.f32(out.buffer).slice(0, batch.numRows * layer.layout.outRow),
      lse: device.f32(lse.buffer).slice(0, batch.numRows * numQHeads),
    };
  } finally {
    attention.release();
    cache.release();
    layer.release();
    for (const buffer of buffers) device.free(buffer);
  }
}
