/** The tensors of a small safetensors file as numbers. Models are read by src/models; this is for expected outputs. */
import type { NumberArray } from "./inputs.ts";

export interface StoredTensor {
  readonly shape: readonly number[];
  readonly values: NumberArray;
}

const arrays = {
  F64: Float64Array,
  F32: Float32Array,
  I32: Int32Array,
  U32: Uint32Array,
  I8: Int8Array,
  U8: Uint8Array,
  U16: Uint16Array,
} as const;

export function readSafetensors(bytes: Uint8Array): Map<string, StoredTensor> {
  const headerBytes = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header: Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }> = JSON.parse(
    new TextDecoder().decode(bytes.subarray(8, 8 + headerBytes)),
  );
  const tensors = new Map<string, StoredTensor>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (!(dtype in arrays))
      throw new Error(`tensor ${name} has dtype ${dtype}; known are ${Object.keys(arrays).join(" ")}`);
    const stored = new Uint8Array(bytes.subarray(8 + headerBytes + data_offsets[0], 8 + headerBytes + data_offsets[1]));
    tensors.set(name, { shape, values: new arrays[dtype as keyof typeof arrays](stored.buffer) });
  }
  return tensors;
}
