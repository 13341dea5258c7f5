/** Device memory that is made again, larger, when more is asked for than it holds. Its contents do not survive that. */

import type { DeviceBuffer } from "./allocator.ts";
import type { CpuDevice } from "./cpuDevice.ts";

export class GrowingBuffer {
  readonly #device: CpuDevice;
  readonly #label: string;
  #buffer: DeviceBuffer | undefined;

  constructor(device: CpuDevice, label: string) {
    this.#device = device;
    this.#label = label;
  }

  /** 0 before the first `reserve`. */
  get pointer(): number {
    return this.#buffer?.pointer ?? 0;
  }

  /** At least `numBytes`; not while commands that use the buffer run. Throws CapacityError when memory is short. */
  reserve(numBytes: number): DeviceBuffer {
    if (this.#buffer !== undefined && this.#buffer.numBytes >= numBytes) return this.#buffer;
    this.free();
    this.#buffer = this.#device.allocate(numBytes, this.#label);
    return this.#buffer;
  }

  free(): void {
    if (this.#buffer !== undefined) this.#device.free(this.#buffer);
    this.#buffer = undefined;
  }
}
