/**
 * Which ranges of device memory are in use: best fit over an address-ordered list of free ranges that are merged when they touch.
 * Pure bookkeeping; growing and zeroing the memory is left to `cpuDevice.ts`. A device holds hundreds to thousands of buffers, so
 * plain arrays with binary search do.
 */

import { ArgumentError, CapacityError } from "../tensor/errors.ts";

/** A range of device memory. Owned by whoever allocated it, until it is freed. */
export interface DeviceBuffer {
  /** Byte address, a multiple of 64. */
  readonly pointer: number;
  readonly numBytes: number;
  /** What it holds, for error messages and statistics. */
  readonly label: string;
}

export interface AllocatorStats {
  readonly numBuffers: number;
  /** Bytes in use, rounded up to the alignment. */
  readonly usedBytes: number;
  /** The most bytes that were ever in use at once. */
  readonly highWaterBytes: number;
}

/** Bytes: every buffer begins at a multiple of this. */
export const ALIGNMENT = 64;

interface Range {
  begin: number;
  end: number;
}

/** Gives out ranges of addresses, and knows which of them were ever given out. */
export class Allocator {
  readonly #begin: number;
  readonly #end: number;
  readonly #free: Range[];
  readonly #buffers = new Map<number, DeviceBuffer>();
  #usedBytes = 0;
  #highWaterBytes = 0;
  #touchedEnd: number;

  /** Hands out addresses in [begin, end). */
  constructor(begin: number, end: number) {
    this.#begin = Math.ceil(begin / ALIGNMENT) * ALIGNMENT;
    this.#end = Math.floor(end / ALIGNMENT) * ALIGNMENT;
    this.#free = [{ begin: this.#begin, end: this.#end }];
    this.#touchedEnd = this.#begin;
  }

  /** Throws CapacityError when no free range is large enough, ArgumentError when `numBytes` is not a size. */
  allocate(numBytes: number, label: string): DeviceBuffer {
    if (!Number.isSafeInteger(numBytes) || numBytes < 0) {
      throw new ArgumentError(`numBytes of "${label}" must be a whole number of bytes, got ${numBytes}`);
    }
    const reserved = reservedBytes(numBytes);
    const index = this.#bestFit(reserved);
    if (index < 0) throw new CapacityError(this.#explain(numBytes, label));
    const range = this.#free[index];
    const pointer = range.begin;
    range.begin += reserved;
    if (range.begin === range.end) this.#free.splice(index, 1);
    const buffer: DeviceBuffer = { pointer, numBytes, label };
    this.#buffers.set(pointer, buffer);
    this.#usedBytes += reserved;
    this.#highWaterBytes = Math.max(this.#highWaterBytes, this.#usedBytes);
    this.#touchedEnd = Math.max(this.#touchedEnd, pointer + reserved);
    return buffer;
  }

  /** Throws ArgumentError when the buffer is not allocated here (any more). */
  free(buffer: DeviceBuffer): void {
    this.check(buffer);
    this.#buffers.delete(buffer.pointer);
    const begin = buffer.pointer;
    const end = begin + reservedBytes(buffer.numBytes);
    this.#usedBytes -= end - begin;
    const index = this.#firstFreeAfter(begin);
    const before = this.#free[index - 1];
    const after = this.#free[index];
    const touchesBefore = before !== undefined && before.end === begin;
    const touchesAfter = after !== undefined && after.begin === end;
    if (touchesBefore && touchesAfter) {
      before.end = after.end;
      this.#free.splice(index, 1);
    } else if (touchesBefore) before.end = end;
    else if (touchesAfter) after.begin = begin;
    else this.#free.splice(index, 0, { begin, end });
  }

  /** Throws ArgumentError unless the buffer is in use. */
  check(buffer: DeviceBuffer): void {
    if (this.#buffers.get(buffer.pointer) !== buffer) {
      throw new ArgumentError(
        `buffer "${buffer.label}" at ${buffer.pointer} is not allocated on this device: it was freed, or belongs to another`,
      );
    }
  }

  /** Addresses from here on were never handed out. */
  get touchedEnd(): number {
    return this.#touchedEnd;
  }

  stats(): AllocatorStats {
    return {
      numBuffers: this.#buffers.size,
      usedBytes: this.#usedBytes,
      highWaterBytes: this.#highWaterBytes,
    };
  }

  #bestFit(reserved: number): number {
    let best = -1;
    let bestBytes = Infinity;
    for (let index = 0; index < this.#free.length; index++) {
      const range = this.#free[index];
      const bytes = range.end - range.begin;
      if (bytes >= reserved && bytes < bestBytes) {
        best = index;
        bestBytes = bytes;
      }
    }
    return best;
  }

  /** Index of the first free range that begins after `pointer`. */
  #firstFreeAfter(pointer: number): number {
    let low = 0;
    let high = this.#free.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#free[middle].begin > pointer) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  #explain(numBytes: number, label: string): string {
    const largest = this.#free.reduce((bytes, range) => Math.max(bytes, range.end - range.begin), 0);
    // Labels that differ in a number only ("k pages layer 3") count as one.
    const byLabel = new Map<string, number>();
    for (const buffer of this.#buffers.values()) {
      const kind = buffer.label.replace(/\d+/g, "*");
      byLabel.set(kind, (byLabel.get(kind) ?? 0) + buffer.numBytes);
    }
    const users = [...byLabel].sort((a, b) => b[1] - a[1]).slice(0, 6);
    const used = users.length === 0 ? "" : ` (${users.map(([kind, bytes]) => `${kind} ${inMiB(bytes)}`).join(", ")})`;
    return (
      `no room for ${inMiB(numBytes)} ("${label}"): ${inMiB(this.#usedBytes)} of ${inMiB(this.#end - this.#begin)} are in use` +
      `${used}, the largest free range is ${inMiB(largest)}. A larger maxMemoryBytes (at most 4 GiB), fewer cache pages or a ` +
      "smaller model would help"
    );
  }
}

/** An empty buffer takes room too, so that every buffer has an address of its own. */
function reservedBytes(numBytes: number): number {
  return Math.max(1, Math.ceil(numBytes / ALIGNMENT)) * ALIGNMENT;
}

function inMiB(numBytes: number): string {
  return numBytes < 2 ** 20 ? `${numBytes} bytes` : `${(numBytes / 2 ** 20).toFixed(1)} MiB`;
}
