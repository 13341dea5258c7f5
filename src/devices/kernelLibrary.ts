/**
 * The kernels of a device: compiles a definition for a spec once, writes the module where all threads find it, and knows the names.
 * How a thread gets from the module to a function is in `kernelStore.ts`.
 */

import { compileWasm, type KernelDefinition, type ParameterTypes, type WasmFeatures } from "../kernels/index.ts";
import { ArgumentError } from "../tensor/errors.ts";
import { type DeviceKernel, KERNEL_RECORD_BYTES, type KernelModule, writeKernelRecord } from "./kernelStore.ts";
import type { MemorySource } from "./memory.ts";

/** The kernels of one device, by definition and spec. */
export class KernelLibrary {
  readonly #source: MemorySource;
  readonly #features: WasmFeatures;
  readonly #names: string[] = [];
  /** By definition, then by spec: the quick way for those who ask every step. */
  readonly #compiled = new WeakMap<object, Map<string, DeviceKernel>>();
  /** By name and spec, for definitions that are made anew. */
  readonly #loaded = new Map<string, { readonly bytes: Uint8Array; readonly kernel: DeviceKernel }>();
  #largestScratch = 0;

  constructor(source: MemorySource, features: WasmFeatures) {
    this.#source = source;
    this.#features = features;
  }

  /** Kernels compiled or loaded so far. */
  get numKernels(): number {
    return this.#names.length;
  }

  /** The most scratch any kernel needs, in bytes for each thread. */
  get largestScratch(): number {
    return this.#largestScratch;
  }

  nameOf(index: number): string {
    return this.#names[index];
  }

  /** See CpuDevice.compile. */
  compile<Spec, P extends ParameterTypes>(
    definition: KernelDefinition<Spec, P>,
    spec: Spec,
  ): DeviceKernel<keyof P & string> {
    let kernels = this.#compiled.get(definition);
    if (kernels === undefined) {
      kernels = new Map();
      this.#compiled.set(definition, kernels);
    }
    const specKey = JSON.stringify(spec) ?? "";
    let kernel = kernels.get(specKey);
    if (kernel === undefined) {
      kernel = this.#loadOnce(`${definition.name} ${specKey}`, compileWasm(definition, spec, this.#features));
      kernels.set(specKey, kernel);
    }
    return kernel as DeviceKernel<keyof P & string>; // its names are the definition's
  }

  /** See CpuDevice.load. */
  load(module: KernelModule): DeviceKernel {
    const { memory } = this.#source;
    const recordPointer = this.#source.allocate(KERNEL_RECORD_BYTES + module.bytes.length, "kernels").pointer;
    const modulePointer = recordPointer + KERNEL_RECORD_BYTES;
    memory.bytes.set(module.bytes, modulePointer);
    writeKernelRecord(memory.words, recordPointer, modulePointer, module.bytes.length);
    this.#largestScratch = Math.max(this.#largestScratch, module.scratchBytes);
    return {
      name: module.name,
      index: this.#names.push(module.name) - 1,
      parameterNames: module.params.map(({ name }) => name),
      isFloat: Uint8Array.from(module.params, ({ type }) => (type === "f32" ? 1 : 0)),
      recordPointer,
      scratchBytes: module.scratchBytes,
      memory,
    };
  }

  #loadOnce(key: string, module: KernelModule): DeviceKernel {
    const loaded = this.#loaded.get(key);
    if (loaded === undefined) {
      const kernel = this.load(module);
      this.#loaded.set(key, { bytes: module.bytes, kernel });
      return kernel;
    }
    const isSame =
      loaded.bytes.length === module.bytes.length && loaded.bytes.every((byte, i) => byte === module.bytes[i]);
    if (!isSame)
      throw new ArgumentError(`two different kernels are named ${module.name}: give one of them another name`);
    return loaded.kernel;
  }
}
