/**
 * Compiled kernels in device memory, where every thread finds them: a worker that sleeps in Atomics.wait never sees a message, but
 * it can read an address. The bytes are written once; each thread compiles and instantiates them when it first meets the kernel
 * (engines share the machine code of equal bytes). Making the bytes is left to src/kernels.
 */

import type { DeviceMemory } from "./memory.ts";

/** A module as the kernel compiler makes it: imports `env.memory`, exports `run(params, begin, end, scratch)`. */
export interface KernelModule {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** In the order of the parameter words. */
  readonly params: readonly KernelParameter[];
  /** Memory each thread needs for itself while it runs this kernel. */
  readonly scratchBytes: number;
}

/** A parameter word of a kernel. */
export interface KernelParameter {
  readonly name: string;
  /** A parameter word holds an f32 if this is "f32", else 32 bits of an integer or an address. */
  readonly type: string;
}

/** A kernel that is ready to be launched on the device that loaded it. `Name` is the union of its parameter names. */
export interface DeviceKernel<Name extends string = string> {
  readonly name: string;
  readonly index: number;
  readonly parameterNames: readonly Name[];
  /** 1 where the parameter is an f32. */
  readonly isFloat: Uint8Array;
  readonly recordPointer: number;
  readonly scratchBytes: number;
  /** The memory of the device that can run it. */
  readonly memory: DeviceMemory;
}

export type KernelFunction = (params: number, begin: number, end: number, scratch: number) => void;

/** A kernel's record in memory: the module's address and its length in bytes. */
export const KERNEL_RECORD_BYTES = 8;

export function writeKernelRecord(
  words: Int32Array,
  recordPointer: number,
  modulePointer: number,
  numBytes: number,
): void {
  words[recordPointer >>> 2] = modulePointer;
  words[(recordPointer >>> 2) + 1] = numBytes;
}

/** Compiles the kernel at `recordPointer` for the calling thread. Throws what WebAssembly throws. */
export function instantiateKernel(
  memory: WebAssembly.Memory,
  words: Int32Array,
  recordPointer: number,
): KernelFunction {
  const modulePointer = words[recordPointer >>> 2] >>> 0;
  const numBytes = words[(recordPointer >>> 2) + 1] >>> 0;
  // Copied, because WebAssembly.Module refuses shared memory.
  const bytes = new Uint8Array(words.buffer, modulePointer, numBytes).slice();
  const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
  const run = instance.exports.run;
  if (typeof run !== "function") throw new TypeError("the kernel's module must export a function named run");
  return run as KernelFunction;
}
