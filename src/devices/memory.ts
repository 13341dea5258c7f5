/**
 * The one WebAssembly memory of a device, grown on demand, with views that cover it. Which parts of it are in use is left to
 * `allocator.ts`. A pointer is a byte address, 0 to 2^32: above 2^31 it is negative as an i32, hence `>>> 0` where words are read.
 */

import { CapacityError, DeviceError } from "../tensor/errors.ts";
import type { DeviceBuffer } from "./allocator.ts";

export const PAGE_BYTES = 65536;

/** The last page is left out, so that the address just past a buffer still fits into 32 bits. */
export const MAX_MEMORY_BYTES = 2 ** 32 - PAGE_BYTES;

/** Growing is cheap (pages are given memory when they are first touched), but not free. */
const LEAST_GROWTH_BYTES = 16 * 2 ** 20;

/** Where the parts of a device get buffers from. */
export interface MemorySource {
  readonly memory: DeviceMemory;
  allocate(numBytes: number, label: string): DeviceBuffer;
  free(buffer: DeviceBuffer): void;
}

export class DeviceMemory {
  readonly memory: WebAssembly.Memory;
  readonly maxBytes: number;
  #words: Int32Array;
  #floats: Float32Array;
  #bytes: Uint8Array;

  /** Throws DeviceError when the engine will not reserve `maxBytes` of addresses. */
  constructor(maxBytes: number, shared: boolean) {
    this.maxBytes = Math.min(Math.ceil(maxBytes / PAGE_BYTES) * PAGE_BYTES, MAX_MEMORY_BYTES);
    try {
      this.memory = new WebAssembly.Memory({ initial: 1, maximum: this.maxBytes / PAGE_BYTES, shared });
    } catch (error) {
      throw new DeviceError(
        `the engine refuses a ${shared ? "shared " : ""}memory of up to ${maxBytes} bytes (${String(error)}): ` +
          "give a smaller maxMemoryBytes",
      );
    }
    this.#words = new Int32Array(this.memory.buffer);
    this.#floats = new Float32Array(this.memory.buffer);
    this.#bytes = new Uint8Array(this.memory.buffer);
  }

  /** Views of the whole memory. Growing replaces them: take them from here each time. */
  get words(): Int32Array {
    return this.#words;
  }

  get floats(): Float32Array {
    return this.#floats;
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get numBytes(): number {
    return this.#bytes.length;
  }

  /** Makes addresses below `end` usable. Throws CapacityError when the system refuses. */
  ensure(end: number): void {
    if (end <= this.numBytes) return;
    const wanted = Math.min(Math.max(end, this.numBytes + LEAST_GROWTH_BYTES), this.maxBytes);
    try {
      this.memory.grow(Math.ceil((wanted - this.numBytes) / PAGE_BYTES));
    } catch (error) {
      throw new CapacityError(
        `the system refuses to grow the device memory from ${this.numBytes} to ${wanted} bytes (${String(error)}): ` +
          "free memory, or load a smaller model",
      );
    }
    this.#words = new Int32Array(this.memory.buffer);
    this.#floats = new Float32Array(this.memory.buffer);
    this.#bytes = new Uint8Array(this.memory.buffer);
  }
}
