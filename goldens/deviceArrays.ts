/** Arrays of a golden case on a device, given back together when the case is done. */
import type { CpuDevice, DeviceBuffer } from "../src/devices/index.ts";
import type { DeviceTensor } from "../src/ops/elementwise/index.ts";
import { numElements } from "../src/tensor/index.ts";
import type { NumberArray } from "./inputs.ts";

export class DeviceArrays {
  readonly device: CpuDevice;
  readonly #buffers: DeviceBuffer[] = [];

  constructor(device: CpuDevice) {
    this.device = device;
  }

  f32(shape: readonly number[], values: NumberArray): DeviceTensor {
    const tensor = this.#allocate(shape, "f32");
    this.device.f32At(tensor.pointer, values.length).set(values);
    return tensor;
  }

  i32(values: Int32Array): DeviceTensor {
    const tensor = this.#allocate([values.length], "i32");
    this.device.i32At(tensor.pointer, values.length).set(values);
    return tensor;
  }

  /** For results: NaN, so that what is never written shows. */
  empty(shape: readonly number[]): DeviceTensor {
    return this.f32(shape, new Float32Array(numElements(shape)).fill(NaN));
  }

  read({ pointer, shape }: DeviceTensor): Float32Array {
    return this.device.f32At(pointer, numElements(shape)).slice();
  }

  free(): void {
    for (const buffer of this.#buffers.splice(0)) this.device.free(buffer);
  }

  #allocate(shape: readonly number[], type: "f32" | "i32"): DeviceTensor {
    const buffer = this.device.allocate(Math.max(4, numElements(shape) * 4), "golden");
    this.#buffers.push(buffer);
    return { pointer: buffer.pointer, shape, type };
  }
}
