/**
 * Rows in the storage types of a cache, encoded and decoded where a golden case runs: by the codec of the host, or by the append and the
 * gather of the CPU device.
 */
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import { type AppendKvSpec, type KvPages, recordAppendKv } from "../src/ops/appendKv/index.ts";
import { type PageStorage, rowElements, rowScales, storageBytes } from "../src/ops/attention/storage.ts";
import {
  decodeRows,
  type EncodeOptions,
  encodeRows,
  type StorageUnits,
  type StoredRows,
} from "../src/ops/attention/storageCodec.ts";
import type { DeviceTensor } from "../src/ops/elementwise/index.ts";
import { recordGatherSlots } from "../src/ops/gatherSlots/index.ts";
import type { Recorder } from "../src/ops/recorder.ts";
import type { GoldenTarget } from "./case.ts";
import type { NumberArray } from "./inputs.ts";

/** `values` [rows, channels] as the storage holds them. */
export async function encodeOn(
  target: GoldenTarget,
  storage: PageStorage,
  values: NumberArray,
  channels: number,
  encoding?: EncodeOptions,
): Promise<StoredRows> {
  if (target.name === "reference") return encodeRows(storage, values, channels, encoding);
  const { device } = target;
  const pool = rowPool(device, storage, values.length / channels, channels);
  try {
    const spec: AppendKvSpec = { numKvHeads: 1, headDim: channels, headDimV: 0, storage, encoding };
    device.f32(pool.numbers).set(values);
    await runOn(device, (recorder) => {
      const { rows: k, pages: kPages, slots: slotMapping } = pool;
      recordAppendKv(recorder, spec, { k, kPages, slotMapping });
    });
    return pool.read();
  } finally {
    pool.free();
  }
}

/** The numbers [rows, channels] of stored rows. */
export async function decodeOn(
  target: GoldenTarget,
  storage: PageStorage,
  stored: StoredRows,
  channels: number,
): Promise<Float32Array> {
  if (target.name === "reference") return decodeRows(storage, stored, channels);
  const { device } = target;
  const pool = rowPool(device, storage, stored.units.length / rowElements(storage, channels), channels);
  try {
    const { pages, slots, rows: out } = pool;
    pool.write(stored);
    const slot = rowElements(storage, channels);
    const scaleSlot = rowScales(storage, channels);
    await runOn(device, (recorder) =>
      recordGatherSlots(
        recorder,
        { channels, pageSize: 1, storage },
        {
          pages: pages.pointer,
          strides: { page: slot, slot },
          scales: pages.scales?.pointer,
          scaleStrides: { page: scaleSlot, slot: scaleSlot },
          slots,
          out,
        },
      ),
    );
    return device.f32(pool.numbers).slice();
  } finally {
    pool.free();
  }
}

/** Records on a device, runs, and waits. */
export async function runOn(device: CpuDevice, record: (recorder: Recorder) => void): Promise<void> {
  const commands = device.commands();
  try {
    record({ device, commands });
    await device.run(commands);
  } finally {
    commands.free();
  }
}

interface RowPool {
  /** f32 rows, encoded from or decoded to. */
  readonly numbers: DeviceBuffer;
  readonly rows: DeviceTensor;
  /** A slot for each row, in order. */
  readonly pages: KvPages;
  readonly slots: DeviceTensor;
  write(stored: StoredRows): void;
  read(): StoredRows;
  free(): void;
}

function rowPool(device: CpuDevice, storage: PageStorage, numRows: number, channels: number): RowPool {
  const numScales = numRows * rowScales(storage, channels);
  const numBytes = numRows * rowElements(storage, channels) * storageBytes(storage);
  const [numbers, units, scales, slots] = [numRows * channels * 4, numBytes, numScales * 4, numRows * 4].map((bytes) =>
    device.allocate(Math.max(bytes, 4), "golden"),
  );
  device.i32(slots).set(Int32Array.from({ length: numRows }, (_, slot) => slot));
  return {
    numbers,
    rows: { pointer: numbers.pointer, shape: [numRows, channels], type: "f32" },
    pages: {
      pointer: units.pointer,
      type: storage,
      numSlots: numRows,
      ...(numScales > 0 && { scales: { pointer: scales.pointer } }),
    },
    slots: { pointer: slots.pointer, shape: [numRows], type: "i32" },
    write(stored) {
      const { buffer, byteOffset, byteLength } = stored.units;
      device.u8At(units.pointer, byteLength).set(new Uint8Array(buffer, byteOffset, byteLength));
      device.f32At(scales.pointer, numScales).set(stored.scales);
    },
    read: () => ({
      units: unitsOf(storage, device.u8At(units.pointer, numBytes).slice().buffer),
      scales: device.f32At(scales.pointer, numScales).slice(),
    }),
    free() {
      for (const buffer of [numbers, units, scales, slots]) device.free(buffer);
    },
  };
}

function unitsOf(storage: PageStorage, bytes: ArrayBuffer): StorageUnits {
  switch (storage) {
    case "f32":
      return new Float32Array(bytes);
    case "f16":
    case "bf16":
      return new Uint16Array(bytes);
    case "i8":
      return new Int8Array(bytes);
    default:
      return new Uint8Array(bytes);
  }
}
