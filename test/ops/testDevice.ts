/**
 * What the tests of the operations share: devices to run on, arrays put on a device and read back, and how two results are compared.
 * For tests only.
 */
import { CpuDevice, type CpuDeviceOptions, type DeviceBuffer } from "../../src/devices/index.ts";
import type { DeviceTensor } from "../../src/ops/elementwise/rows.ts";
import type { Recorder } from "../../src/ops/recorder.ts";

/** Every device an operation must agree with its reference on, by name. */
export const testDevices: Readonly<Record<string, () => Promise<TestDevice>>> = {
  "cpu with 1 thread, no shared memory, no relaxed SIMD": () =>
    TestDevice.create({ threads: 1, sharedMemory: false, relaxedSimd: false }),
  "cpu with 3 threads": () => TestDevice.create({ threads: 3 }),
};

/** A device with the buffers that tests put on it. */
export class TestDevice {
  readonly device: CpuDevice;
  readonly #buffers: DeviceBuffer[] = [];

  private constructor(device: CpuDevice) {
    this.device = device;
  }

  static async create(options: CpuDeviceOptions): Promise<TestDevice> {
    return new TestDevice(await CpuDevice.create(options));
  }

  /** A tensor with these values, on a device buffer of its own. */
  f32(shape: readonly number[], values: ArrayLike<number>): DeviceTensor {
    const buffer = this.#allocate(values.length * 4);
    this.device.f32(buffer).set(values);
    return { pointer: buffer.pointer, shape, type: "f32" };
  }

  i32(shape: readonly number[], values: ArrayLike<number>): DeviceTensor {
    const buffer = this.#allocate(values.length * 4);
    this.device.i32(buffer).set(values);
    return { pointer: buffer.pointer, shape, type: "i32" };
  }

  /** A tensor of `type` and of as many bytes as the array has. */
  bytes(shape: readonly number[], type: DeviceTensor["type"], values: Uint8Array | Uint16Array): DeviceTensor {
    const buffer = this.#allocate(values.byteLength);
    this.device.u8(buffer).set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    return { pointer: buffer.pointer, shape, type };
  }

  /** Records, runs, and waits. */
  async run(record: (recorder: Recorder) => void): Promise<void> {
    const commands = this.device.commands();
    record({ device: this.device, commands });
    await this.device.run(commands);
    commands.free();
  }

  /** A copy of the buffer that the tensor lies in, as f32. */
  readF32(tensor: DeviceTensor): Float32Array {
    return this.device.f32(this.#bufferOf(tensor)).slice();
  }

  readI32(tensor: DeviceTensor): Int32Array {
    return this.device.i32(this.#bufferOf(tensor)).slice();
  }

  readBytes(tensor: DeviceTensor): Uint8Array {
    return this.device.u8(this.#bufferOf(tensor)).slice();
  }

  /** Gives all buffers back. */
  clear(): void {
    for (const buffer of this.#buffers.splice(0)) this.device.free(buffer);
  }

  async close(): Promise<void> {
    await this.device.close();
  }

  #allocate(numBytes: number): DeviceBuffer {
    const buffer = this.device.allocate(numBytes, "test");
    this.#buffers.push(buffer);
    return buffer;
  }

  #bufferOf({ pointer }: DeviceTensor): DeviceBuffer {
    const buffer = this.#buffers.find((candidate) => candidate.pointer === pointer);
    if (buffer === undefined) throw new Error(`no buffer begins at ${pointer}`);
    return buffer;
  }
}

/** Reproducible numbers: standard normal by Box and Muller from a 32-bit linear congruential generator (Numerical Recipes' constants). */
export function normals(length: number, seed: number): Float32Array {
  let state = (seed * 2654435761) >>> 0;
  const uniform = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float32Array.from({ length }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

/** The largest |actual - expected| / (relative * |expected| + absolute): at most 1 if the result is within tolerance. NaN counts as infinite. */
export function worstError(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  { relative, absolute }: { readonly relative: number; readonly absolute: number },
): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} results for ${expected.length} expected`);
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const error = Math.abs(actual[i] - expected[i]) / (relative * Math.abs(expected[i]) + absolute);
    worst = Math.max(worst, Number.isNaN(error) ? Infinity : error);
  }
  return worst;
}

/** The bits of f32 values, so that a comparison tells -0 from 0 and one NaN from another. */
export function bitsOf(values: Float32Array): Uint32Array {
  return new Uint32Array(values.buffer, values.byteOffset, values.length).slice();
}
