/** Runs the attention call of a golden case on the CPU device. What has no kernel yet is refused, not replaced by something else. */
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import {
  type AttentionSpec,
  CpuAttentionPlan,
  type ElementStorage,
  recordAttention,
} from "../src/ops/attention/index.ts";
import { bf16FromF32, elementBytes, f16FromF32, f32ToE4m3, f32ToE5m2 } from "../src/tensor/index.ts";
import type { AttentionCall } from "./attention.ts";
import type { NumberArray } from "./inputs.ts";

const encoders: Readonly<Record<ElementStorage, (values: Float32Array) => Float32Array | Uint16Array | Uint8Array>> = {
  f32: (values) => values,
  f16: f16FromF32,
  bf16: bf16FromF32,
  f8e4m3: (values) => Uint8Array.from(values, f32ToE4m3),
  f8e5m2: (values) => Uint8Array.from(values, f32ToE5m2),
};

export async function attentionOnCpu(
  given: AttentionCall,
  device: CpuDevice,
): Promise<{ out: Float32Array; lse: Float32Array }> {
  const storage = given.storage.replace("f8_", "f8");
  if (!isElementStorage(storage)) throw new Error(`the cpu has no attention over ${storage} pages yet`);
  const call = padHeads(given);
  const spec: AttentionSpec = { ...call.spec, storage, alibi: call.alibiSlopes !== undefined };
  const buffers: DeviceBuffer[] = [];
  const allocate = (numBytes: number, label: string): DeviceBuffer => {
    const buffer = device.allocate(Math.max(numBytes, 64), label);
    buffers.push(buffer);
    return buffer;
  };
  const upload = (values: Float32Array | Uint16Array | Uint8Array, label: string): number => {
    const buffer = allocate(values.byteLength, label);
    device.u8(buffer).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return buffer.pointer;
  };
  const plan = new CpuAttentionPlan(device, spec);
  const commands = device.commands();
  try {
    const encode = (values: NumberArray): Float32Array | Uint16Array | Uint8Array =>
      encoders[storage](Float32Array.from(values));
    const kPages = upload(encode(call.kPages), "keys");
    const isCombined = call.vPages === call.kPages;
    const vBase = isCombined ? kPages : upload(encode(call.vPages), "values");
    const q = upload(Float32Array.from(call.q), "queries");
    const numHeadRows = call.batch.numRows * spec.numQHeads;
    const out = allocate(numHeadRows * spec.headDim * 4, "out");
    const lse = allocate(numHeadRows * 4, "lse");
    plan.update(call.batch);
    recordAttention({ device, commands }, plan, {
      q,
      kPages,
      vPages: vBase + call.vOffset * elementBytes(storage),
      out: out.pointer,
      lse: lse.pointer,
      kStrides: call.kStrides,
      vStrides: call.vStrides,
      alibiSlopes: call.alibiSlopes && upload(Float32Array.from(call.alibiSlopes), "slopes"),
      kScale: call.kScale,
      vScale: call.vScale,
    });
    await device.run(commands);
    const padded = device.f32(out).slice(0, numHeadRows * spec.headDim);
    return {
      out: trimHeads(padded, spec.headDim, given.spec.headDim),
      lse: device.f32(lse).slice(0, numHeadRows),
    };
  } finally {
    commands.free();
    plan.release();
    for (const buffer of buffers) device.free(buffer);
  }
}

function isElementStorage(storage: string): storage is ElementStorage {
  return storage in encoders;
}

/** Heads of another dimension than a multiple of 4 get channels of zeros, as every caller of the kernel has to do. */
function padHeads(call: AttentionCall): AttentionCall {
  const { headDim } = call.spec;
  const padded = Math.ceil(headDim / 4) * 4;
  if (padded === headDim) return call;
  if (call.vOffset !== 0) throw new Error(`combined pages with headDim ${headDim} cannot be padded`);
  const pad = (values: NumberArray): Float32Array => {
    const wide = new Float32Array((values.length / headDim) * padded);
    values.forEach((value, i) => {
      wide[Math.floor(i / headDim) * padded + (i % headDim)] = value;
    });
    return wide;
  };
  const widen = (strides: AttentionCall["kStrides"]): AttentionCall["kStrides"] => ({
    page: (strides.page / headDim) * padded,
    slot: (strides.slot / headDim) * padded,
    head: (strides.head / headDim) * padded,
  });
  return {
    ...call,
    spec: { ...call.spec, headDim: padded },
    q: pad(call.q),
    kPages: pad(call.kPages),
    vPages: pad(call.vPages),
    kStrides: widen(call.kStrides),
    vStrides: widen(call.vStrides),
  };
}

function trimHeads(values: Float32Array, padded: number, headDim: number): Float32Array {
  return padded === headDim ? values : values.filter((_, i) => i % padded < headDim);
}
