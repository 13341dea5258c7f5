/**
 * A model's weights on the device: every expected tensor read and packed. Matrices become `WeightMatrix` in the type
 * they are stored in; vectors (norms, biases) become f32.
 */

import type { CommandList, CpuDevice, DeviceBuffer } from "../../devices/index.ts";
import {
  type ActivationPrecision,
  allocateWeightMatrix,
  recordPackRows,
  rowsPerPanelGroup,
  type WeightMatrix,
} from "../../ops/matmul/index.ts";
import { ArgumentError, dequantize } from "../../tensor/index.ts";
import { expectedTensors, type ModelConfig } from "../config/index.ts";
import type { TensorEntry } from "../formats/index.ts";
import { readTensor } from "../formats/index.ts";

/** Bytes that are read from the file at a time. Two such pieces are in memory: one is read while the other is packed. */
const stagingBytes = 4 * 2 ** 20;

/** A model's weights by Kvasir's names, on the device. */
export interface LoadedWeights {
  readonly matrices: ReadonlyMap<string, WeightMatrix>;
  /** Addresses of f32 vectors. */
  readonly vectors: ReadonlyMap<string, { readonly pointer: number; readonly length: number }>;
  readonly numBytes: number;
}

/** How weights are loaded. */
export interface LoadWeightsOptions {
  readonly precision: ActivationPrecision;
  onProgress?(loadedBytes: number, totalBytes: number): void;
  readonly signal?: AbortSignal;
}

/**
 * Reads a model's tensors into the device. `tensors` is what `locateTensors` found: names and shapes are checked there. Rejects with
 * CapacityError when memory is short, FormatError for a file that ends too early, or the signal's reason.
 */
export async function loadWeights(
  device: CpuDevice,
  config: ModelConfig,
  tensors: ReadonlyMap<string, TensorEntry>,
  options: LoadWeightsOptions,
): Promise<LoadedWeights> {
  const entries = expectedTensors(config).map(({ name }) => {
    const entry = tensors.get(name);
    if (entry === undefined)
      throw new ArgumentError(`tensors must be what locateTensors found, but ${name} is missing`);
    return { name, entry };
  });
  const totalBytes = entries.reduce((sum, { entry }) => sum + entry.numBytes, 0);
  const matrices = new Map<string, WeightMatrix>();
  const vectors = new Map<string, { pointer: number; length: number }>();
  const packer = new Packer(device, options.signal);
  let loadedBytes = 0;
  let numBytes = 0;
  const advance = (bytes: number): void => {
    loadedBytes += bytes;
    options.onProgress?.(loadedBytes, totalBytes);
  };
  try {
    for (const { name, entry } of entries) {
      if (entry.shape.length === 1) {
        const values = dequantize(entry.type, await readTensor(entry), entry.shape[0]);
        const buffer = device.allocate(values.byteLength, name);
        device.f32(buffer).set(values);
        vectors.set(name, { pointer: buffer.pointer, length: values.length });
        numBytes += buffer.numBytes;
        advance(entry.numBytes);
      } else {
        const [rows, columns] = entry.shape;
        const weight = allocateWeightMatrix(device, {
          name,
          type: entry.type,
          rows,
          columns,
          precision: options.precision,
        });
        await packer.pack(entry, weight, advance);
        matrices.set(name, weight);
        numBytes += weight.numBytes;
      }
    }
  } finally {
    packer.free();
  }
  return { matrices, vectors, numBytes };
}

/** Reads rows into one of two staging buffers while the other's are packed. */
class Packer {
  readonly #device: CpuDevice;
  readonly #signal: AbortSignal | undefined;
  readonly #commands: CommandList;
  #staging: DeviceBuffer[] = [];

  constructor(device: CpuDevice, signal: AbortSignal | undefined) {
    this.#device = device;
    this.#commands = device.commands();
    this.#signal = signal;
  }

  async pack(entry: TensorEntry, weight: WeightMatrix, onBytes: (bytes: number) => void): Promise<void> {
    const { rows } = weight;
    const rowBytes = entry.numBytes / rows;
    const rowsAtOnce = Math.max(
      rowsPerPanelGroup,
      Math.floor(stagingBytes / rowBytes / rowsPerPanelGroup) * rowsPerPanelGroup,
    );
    this.#reserve(rowsAtOnce * rowBytes);
    const commands = this.#commands;
    const read = (firstRow: number, slot: number): Promise<void> => {
      const numBytes = Math.min(rowsAtOnce, rows - firstRow) * rowBytes;
      return entry.source.readInto(
        entry.byteOffset + firstRow * rowBytes,
        this.#device.u8At(this.#staging[slot].pointer, numBytes),
      );
    };
    let reading = read(0, 0);
    try {
      for (let firstRow = 0, slot = 0; firstRow < rows; firstRow += rowsAtOnce, slot = 1 - slot) {
        await reading;
        this.#signal?.throwIfAborted();
        if (firstRow + rowsAtOnce < rows) reading = read(firstRow + rowsAtOnce, 1 - slot);
        const numRows = Math.min(rowsAtOnce, rows - firstRow);
        commands.reset();
        recordPackRows({ device: this.#device, commands }, weight, this.#staging[slot].pointer, firstRow, numRows);
        await this.#device.run(commands);
        onBytes(numRows * rowBytes);
      }
    } finally {
      // A read that is under way after a failure must not end in memory that has become something else.
      await Promise.allSettled([reading]);
    }
  }

  free(): void {
    this.#freeStaging();
    this.#commands.free();
  }

  #freeStaging(): void {
    for (const buffer of this.#staging) this.#device.free(buffer);
    this.#staging = [];
  }

  #reserve(numBytes: number): void {
    if (this.#staging.length > 0 && this.#staging[0].numBytes >= numBytes) return;
    this.#freeStaging();
    this.#staging = [0, 1].map((slot) => this.#device.allocate(Math.max(numBytes, stagingBytes), `staging ${slot}`));
  }
}
