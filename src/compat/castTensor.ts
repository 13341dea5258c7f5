/** Tensors in other element types: conversions that an original leaves to its framework, done on the host. Small tensors, no hot path. */
import type { ResultTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import { decodeRows, type ElementStorage, encodeRows } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { elementBytes, numElements } from "../tensor/index.ts";

/** f32 rows, divided by `divisor` and rounded to what `type` keeps of them; saturating. A dense f32 tensor in a buffer of its own. */
export function roundedRows(device: CpuDevice, rows: RowsTensor, type: ElementStorage, divisor: number): ResultTensor {
  const values = readRows(device, rows);
  for (let i = 0; i < values.length; i++) values[i] /= divisor;
  const result = allocate(device, rows.shape, "f32");
  device.f32At(result.pointer, values.length).set(decodeRows(type, encodeRows(type, values, 1), 1));
  return result;
}

/** A dense f32 tensor in another type, saturating: into `out`, or into a buffer of its own, which the caller frees. */
export function castTensor(
  device: CpuDevice,
  tensor: DeviceTensor,
  type: "f16" | "bf16",
  out: DeviceTensor | undefined,
): ResultTensor {
  const { units } = encodeRows(type, readRows(device, tensor), 1);
  const result = out ?? allocate(device, tensor.shape, type);
  device.u8At(result.pointer, units.byteLength).set(new Uint8Array(units.buffer, units.byteOffset, units.byteLength));
  return result;
}

function readRows(device: CpuDevice, { pointer, shape, rowStride }: RowsTensor): Float32Array {
  const length = numElements(shape.slice(1));
  const stride = rowStride ?? length;
  const values = new Float32Array(numElements(shape));
  for (let row = 0; row < shape[0]; row++) {
    values.set(device.f32At(pointer + row * stride * 4, length), row * length);
  }
  return values;
}

function allocate(device: CpuDevice, shape: readonly number[], type: "f32" | "f16" | "bf16"): ResultTensor {
  const buffer = device.allocate(Math.max(4, numElements(shape) * elementBytes(type)), `tensor of ${type}`);
  return { pointer: buffer.pointer, shape, type, buffer };
}
