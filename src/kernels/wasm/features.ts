/** What differs between WebAssembly engines, as far as the emitted code depends on it. */
export interface WasmFeatures {
  /** Relaxed SIMD: fused multiply-add and the 8-bit dot product. Without it, more instructions and unfused multiply-adds. */
  readonly relaxedSimd: boolean;
  /** The memory is shared between threads. */
  readonly sharedMemory: boolean;
}
