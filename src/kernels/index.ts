/** The kernel language and its WebAssembly back end. */

export * from "./builder.ts";
export * from "./math.ts";
export { printKernel } from "./print.ts";
export type { KernelTree, LoadForm, ParameterType, StoreForm, ValueType, VectorType } from "./tree.ts";
export { KernelTypeError, type Operand, Value } from "./value.ts";
export { type CompiledKernel, compileWasm, wasmModule, wasmTarget } from "./wasm/compile.ts";
export { detectWasmFeatures } from "./wasm/detect.ts";
export type { WasmFeatures } from "./wasm/features.ts";
