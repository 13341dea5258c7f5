/** Batches whose pages lie scattered over the pool, and device memory filled with numbers of order 1 in any storage. */

import { type KvLayout, type KvTensors, scaleRow, storageRow } from "../../src/attention/tensors.ts";
import type { CpuDevice, DeviceBuffer } from "../../src/devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  encodeRows,
  type PageStorage,
  type SequenceLengths,
  storageBytes,
  valueDim,
} from "../../src/ops/attention/index.ts";
import type { DeviceTensor } from "../../src/ops/elementwise/index.ts";

/** Rows that are drawn; memory repeats them. */
const SEED_ROWS = 61;
/** A prime that divides no number of pages here: neighbouring pages of a sequence are far apart, as in a pool in use. */
const PAGE_STEP = 7919;

export const repeat = (count: number, queryLen: number, kvLen: number): SequenceLengths[] =>
  Array.from({ length: count }, () => ({ queryLen, kvLen }));

export function batchOf(lengths: readonly SequenceLengths[], pageSize: number): AttentionBatch {
  const pagesOf = lengths.map(({ kvLen }) => Math.ceil(kvLen / pageSize));
  const numPages = pagesOf.reduce((a, b) => a + b, 0);
  const maxPages = Math.max(...pagesOf);
  const blockTables = new Int32Array(lengths.length * maxPages);
  const queryIndptr = new Int32Array(lengths.length + 1);
  let nextPage = 0;
  for (const [s, { queryLen }] of lengths.entries()) {
    queryIndptr[s + 1] = queryIndptr[s] + queryLen;
    for (let j = 0; j < pagesOf[s]; j++) blockTables[s * maxPages + j] = (nextPage++ * PAGE_STEP) % numPages;
  }
  return {
    numRows: queryIndptr[lengths.length],
    numSeqs: lengths.length,
    queryIndptr,
    kvLens: Int32Array.from(lengths, ({ kvLen }) => kvLen),
    blockTables,
    maxPages,
    numPages,
  };
}

/** The same numbers each time, from -1.7 to 1.7 with variance 1. */
export function uniform(count: number): Float32Array {
  let state = 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 31 - 1) * Math.sqrt(3);
  });
}

/** Memory of one measurement, given back together. */
export class Memory {
  readonly device: CpuDevice;
  readonly #buffers: DeviceBuffer[] = [];

  constructor(device: CpuDevice) {
    this.device = device;
  }

  get numBytes(): number {
    return this.#buffers.reduce((sum, { numBytes }) => sum + numBytes, 0);
  }

  /** f32 numbers of order `scale`. */
  floats(shape: readonly number[], scale = 1): DeviceTensor {
    const tensor = this.zeros(shape);
    const length = shape.reduce((product, extent) => product * extent, 1);
    this.#repeat(
      tensor.pointer,
      bytesOf(uniform(Math.min(length, SEED_ROWS * 1024)).map((x) => x * scale)),
      length * 4,
    );
    return tensor;
  }

  zeros(shape: readonly number[]): DeviceTensor {
    const length = shape.reduce((product, extent) => product * extent, 1);
    return { pointer: this.#allocate(length * 4), shape, type: "f32" };
  }

  values(values: Float32Array, shape: readonly number[]): DeviceTensor {
    const tensor = this.zeros(shape);
    this.device.f32At(tensor.pointer, values.length).set(values);
    return tensor;
  }

  /** Keys and values in pages, and their scales. */
  cache(
    spec: Pick<AttentionSpec, "headDim" | "headDimV" | "numKvHeads" | "storage" | "valueStorage">,
    { layout, pageSize, numPages }: { layout: KvLayout; pageSize: number; numPages: number },
  ): { readonly cache: KvTensors; readonly scales?: KvTensors } {
    const { numKvHeads, headDim, storage, valueStorage = storage } = spec;
    const shape = (elements: number): number[] =>
      layout === "NHD" ? [numPages, pageSize, numKvHeads, elements] : [numPages, numKvHeads, pageSize, elements];
    const numRows = numPages * pageSize * numKvHeads;
    const part = (of: PageStorage, channels: number) => {
      const { units, scales } = this.rows(of, channels, numRows);
      const [row, scale] = [storageRow(of, channels), scaleRow(of, channels)];
      return {
        cache: { pointer: units, shape: shape(row.elements), type: row.type },
        scales: scale.elements > 0 ? { pointer: scales, shape: shape(scale.elements), type: scale.type } : undefined,
      };
    };
    const [k, v] = [part(storage, headDim), part(valueStorage, valueDim(spec))];
    const cache = { k: k.cache, v: v.cache };
    return k.scales && v.scales ? { cache, scales: { k: k.scales, v: v.scales } } : { cache };
  }

  /** Addresses of so many rows of a storage, and of their scales. */
  rows(storage: PageStorage, channels: number, numRows: number): { readonly units: number; readonly scales: number } {
    const row = storageRow(storage, channels).elements * storageBytes(storage);
    const scale = scaleRow(storage, channels).elements * 4;
    const units = this.#allocate(numRows * row);
    const scales = scale > 0 ? this.#allocate(numRows * scale) : 0;
    this.fill({ units, scales }, storage, channels, numRows);
    return { units, scales };
  }

  /** Writes rows where memory is allocated already. */
  fill(
    { units, scales }: { readonly units: number; readonly scales: number },
    storage: PageStorage,
    channels: number,
    numRows: number,
  ): void {
    const seed = encodeRows(storage, uniform(SEED_ROWS * channels), channels);
    const [unitBytes, scaleBytes] = [bytesOf(seed.units), bytesOf(seed.scales)];
    this.#repeat(units, unitBytes, (numRows * unitBytes.length) / SEED_ROWS);
    this.#repeat(scales, scaleBytes, (numRows * scaleBytes.length) / SEED_ROWS);
  }

  release(): void {
    for (const buffer of this.#buffers.splice(0)) this.device.free(buffer);
  }

  #allocate(numBytes: number): number {
    const buffer = this.device.allocate(numBytes, "attention bench");
    this.#buffers.push(buffer);
    return buffer.pointer;
  }

  #repeat(pointer: number, seed: Uint8Array, numBytes: number): void {
    const bytes = this.device.u8At(pointer, numBytes);
    bytes.set(seed.subarray(0, numBytes));
    for (let done = seed.length; done < numBytes; done *= 2) bytes.copyWithin(done, 0, Math.min(done, numBytes - done));
  }
}

function bytesOf(array: ArrayBufferView<ArrayBufferLike>): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
