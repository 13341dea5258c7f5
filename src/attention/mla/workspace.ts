/** Growing pieces of device memory by name: what the forms of latent attention share among layers and with one another. */
import { type CpuDevice, GrowingBuffer } from "../../devices/index.ts";
import type { DeviceTensor } from "../../ops/elementwise/index.ts";

/** What is kept. */
export type MlaBuffer =
  | "queries"
  | "latents"
  | "rope keys"
  | "keys"
  | "values"
  | "partial out"
  | "partial lse"
  | "latent results"
  | "lse"
  | "slots"
  | "positions"
  | "query positions";

/** Memory in 4-byte elements. It only grows, until `release`; what it holds does not survive growing. */
export class Workspace {
  readonly #device: CpuDevice;
  readonly #buffers = new Map<MlaBuffer, GrowingBuffer>();

  constructor(device: CpuDevice) {
    this.#device = device;
  }

  /** Addresses of everything: changes when any of it moved. */
  get key(): string {
    return [...this.#buffers.values()].map(({ pointer }) => pointer).join();
  }

  /** Makes room for `numElements`. Not while commands that use the buffer run. */
  reserve(name: MlaBuffer, numElements: number): void {
    const buffer = this.#buffers.get(name) ?? new GrowingBuffer(this.#device, `mla ${name}`);
    this.#buffers.set(name, buffer);
    buffer.reserve(Math.max(4, numElements * 4));
  }

  /** Makes room for the numbers and writes them. */
  write(name: MlaBuffer, values: Int32Array): void {
    this.reserve(name, values.length);
    this.#device.i32At(this.pointer(name), values.length).set(values);
  }

  /** 0 before the first `reserve`. */
  pointer(name: MlaBuffer): number {
    return this.#buffers.get(name)?.pointer ?? 0;
  }

  /** The buffer as an f32 tensor from its start on. */
  tensor(name: MlaBuffer, shape: readonly number[]): DeviceTensor {
    return { pointer: this.pointer(name), shape, type: "f32" };
  }

  release(): void {
    for (const buffer of this.#buffers.values()) buffer.free();
  }
}
