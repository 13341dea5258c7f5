/** Runs the attention call of a golden case on the CPU device. What has no kernel yet is refused, not replaced by something else. */
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import {
  type AttentionSpec,
  CpuAttentionPlan,
  encodeRows,
  type PageStorage,
  recordAttention,
  type StorageUnits,
  storageBytes,
  valueDim,
} from "../src/ops/attention/index.ts";
import type { AttentionCall } from "./attentionCall.ts";
import type { NumberArray } from "./inputs.ts";

const storages: Readonly<Record<string, PageStorage>> = {
  f32: "f32",
  f16: "f16",
  bf16: "bf16",
  f8_e4m3: "f8e4m3",
  f8_e5m2: "f8e5m2",
  i8: "i8",
};

export async function attentionOnCpu(
  call: AttentionCall,
  device: CpuDevice,
): Promise<{ out: Float32Array; lse: Float32Array }> {
  const storage = storages[call.storage];
  if (!storage) throw new Error(`there are no pages of ${call.storage}`);
  const spec: AttentionSpec = {
    ...call.spec,
    storage,
    alibi: call.alibiSlopes !== undefined,
    sinks: call.sinks !== undefined,
  };
  const buffers: DeviceBuffer[] = [];
  const allocate = (numBytes: number, label: string): DeviceBuffer => {
    const buffer = device.allocate(Math.max(numBytes, 64), label);
    buffers.push(buffer);
    return buffer;
  };
  const upload = (values: StorageUnits, label: string): number => {
    const buffer = allocate(values.byteLength, label);
    device.u8(buffer).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return buffer.pointer;
  };
  const uploadF32 = (values: NumberArray | undefined, label: string): number | undefined =>
    values && upload(Float32Array.from(values), label);
  // The int8 pages of a case are codes already.
  const encode = (values: NumberArray): StorageUnits =>
    storage === "i8" ? Int8Array.from(values) : encodeRows(storage, values, 1).units;
  const plan = new CpuAttentionPlan(device, spec);
  const commands = device.commands();
  try {
    const kPages = upload(encode(call.kPages), "keys");
    const isCombined = call.vPages === call.kPages;
    const vBase = isCombined ? kPages : upload(encode(call.vPages), "values");
    const numHeadRows = call.batch.numRows * spec.numQHeads;
    const numOut = numHeadRows * valueDim(spec);
    const out = allocate(numOut * 4, "out");
    const lse = allocate(numHeadRows * 4, "lse");
    plan.update(call.batch);
    recordAttention({ device, commands }, plan, {
      q: upload(Float32Array.from(call.q), "queries"),
      kPages,
      vPages: vBase + call.vOffset * storageBytes(storage),
      out: out.pointer,
      lse: lse.pointer,
      kStrides: call.kStrides,
      vStrides: call.vStrides,
      kScales: uploadF32(call.rowScales?.k, "key scales"),
      vScales: uploadF32(call.rowScales?.v, "value scales"),
      kScaleStrides: call.rowScales?.strides,
      vScaleStrides: call.rowScales?.strides,
      alibiSlopes: uploadF32(call.alibiSlopes, "slopes"),
      sinks: uploadF32(call.sinks, "sinks"),
      kScale: call.kScale,
      vScale: call.vScale,
    });
    await device.run(commands);
    return { out: device.f32(out).slice(0, numOut), lse: device.f32(lse).slice(0, numHeadRows) };
  } finally {
    commands.free();
    plan.release();
    for (const buffer of buffers) device.free(buffer);
  }
}
