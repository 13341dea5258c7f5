/** Runs a kernel outside any device: arrays are copied into a memory of its own, and back out when it is done. For tests only. */

import {
  compileWasm,
  detectWasmFeatures,
  type KernelDefinition,
  type ParameterTypes,
  type WasmFeatures,
} from "../../src/kernels/index.ts";

export type TestArray = Float32Array | Int32Array | Uint32Array | Int16Array | Uint16Array | Int8Array | Uint8Array;

/** A pointer parameter is given an array, whose contents go in and come back; the others a number. */
export type KernelArgs<P extends ParameterTypes> = {
  readonly [N in keyof P]: P[N] extends "pointer" ? TestArray : number;
};

export interface RunOptions {
  /** Default: plain SIMD, which every engine has. */
  readonly features?: WasmFeatures;
  /** The calls of `run`, as ranges of tasks. Default: one call with task 0. */
  readonly calls?: readonly (readonly [begin: number, end: number])[];
}

export const plainFeatures: WasmFeatures = { relaxedSimd: false, sharedMemory: false };

/** Every way in which kernels can be compiled for this engine, by name. */
export const featureSets: readonly (readonly [name: string, features: WasmFeatures])[] = [
  ["plain SIMD", plainFeatures],
  ...(detectWasmFeatures()?.relaxedSimd === true
    ? ([["relaxed SIMD", { relaxedSimd: true, sharedMemory: false }]] as const)
    : []),
];

const paramsAt = 1024;
const arraysAt = 4096;
const pageBytes = 65536;
const align = (address: number): number => Math.ceil(address / 64) * 64;

/** Runs the kernel and leaves what it wrote in the arrays. Memory traps become the engine's RuntimeError. */
export function runKernel<Spec, P extends ParameterTypes>(
  definition: KernelDefinition<Spec, P>,
  spec: Spec,
  args: KernelArgs<P>,
  { features = plainFeatures, calls = [[0, 1]] }: RunOptions = {},
): void {
  const { bytes, params, scratchBytes } = compileWasm(definition, spec, features);
  const arrays: { readonly array: TestArray; readonly address: number }[] = [];
  let end = arraysAt;
  const words = new DataView(new ArrayBuffer(params.length * 4));
  params.forEach(({ name, type }, index) => {
    const given: TestArray | number = args[name];
    if (typeof given === "number") {
      if (type === "f32") words.setFloat32(index * 4, given, true);
      else words.setInt32(index * 4, given, true);
      return;
    }
    words.setUint32(index * 4, end, true);
    arrays.push({ array: given, address: end });
    end = align(end + given.byteLength);
  });
  const memory = new WebAssembly.Memory({ initial: Math.ceil((end + scratchBytes) / pageBytes), maximum: 65536 });
  const all = new Uint8Array(memory.buffer);
  all.set(new Uint8Array(words.buffer), paramsAt);
  for (const { array, address } of arrays) all.set(bytesOf(array), address);
  const { run } = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } }).exports;
  if (typeof run !== "function") throw new Error(`the module of ${definition.name} exports no function run`);
  for (const [from, to] of calls) run(paramsAt, from, to, end);
  for (const { array, address } of arrays) bytesOf(array).set(all.subarray(address, address + array.byteLength));
}

const bytesOf = (array: TestArray): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
