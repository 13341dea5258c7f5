/** What a CPU device can be asked for, and what this machine makes of it. Nothing here falls back: what cannot be had is an error. */

import { detectWasmFeatures, type WasmFeatures } from "../kernels/index.ts";
import { ArgumentError, DeviceError } from "../tensor/errors.ts";
import { CONTROL_BYTES } from "./controlBlock.ts";
import { MAX_MEMORY_BYTES } from "./memory.ts";
import type { Platform } from "./platform.ts";

/** What `CpuDevice.create` can be asked for. */
export interface CpuDeviceOptions {
  /** Threads that run kernels, the caller's included. Default: the cores available; 1 where memory cannot be shared. */
  readonly threads?: number;
  /** Upper bound of the memory, at most (and by default) 4 GiB. Address space only: memory is taken as it is used. */
  readonly maxMemoryBytes?: number;
  /** False: one thread, and no SharedArrayBuffer. Default: shared where the engine can. */
  readonly sharedMemory?: boolean;
  /** False: kernels without relaxed SIMD. Default: used where the engine has it. */
  readonly relaxedSimd?: boolean;
  /** How long an idle thread spins before it sleeps. Default 50. */
  readonly spinMicroseconds?: number;
  /** Where workers come from. Default: the platform this runs on. */
  readonly platform?: Platform;
}

const MAX_THREADS = 256;

/** Throws DeviceError when the engine lacks what was asked for, or SIMD, which is always needed. */
export function chooseFeatures(options: CpuDeviceOptions): WasmFeatures {
  const detected = detectWasmFeatures();
  if (detected === undefined) throw new DeviceError("the cpu device needs WebAssembly SIMD, which this engine lacks");
  if (options.sharedMemory === true && !detected.sharedMemory) {
    throw new DeviceError(
      "this engine has no shared WebAssembly memory: in a browser, the page must be cross-origin isolated (COOP and COEP headers)",
    );
  }
  if (options.relaxedSimd === true && !detected.relaxedSimd) {
    throw new DeviceError("this engine has no relaxed SIMD: leave relaxedSimd out");
  }
  return {
    relaxedSimd: options.relaxedSimd ?? detected.relaxedSimd,
    sharedMemory: options.sharedMemory ?? detected.sharedMemory,
  };
}

/** Throws ArgumentError for a number of threads that cannot be. */
export function chooseThreads(options: CpuDeviceOptions, features: WasmFeatures, platform: Platform): number {
  const threads = options.threads ?? (features.sharedMemory ? Math.min(platform.availableThreads, MAX_THREADS) : 1);
  if (!Number.isInteger(threads) || threads < 1 || threads > MAX_THREADS) {
    throw new ArgumentError(`threads must be a whole number from 1 to ${MAX_THREADS}, got ${threads}`);
  }
  if (threads > 1 && !features.sharedMemory) {
    throw new ArgumentError(`threads must be 1 without shared memory, got ${threads}`);
  }
  return threads;
}

/** Throws ArgumentError for a size that cannot be. */
export function chooseMemoryBytes(options: CpuDeviceOptions): number {
  const maxMemoryBytes = options.maxMemoryBytes ?? MAX_MEMORY_BYTES;
  if (!(maxMemoryBytes > CONTROL_BYTES)) {
    throw new ArgumentError(`maxMemoryBytes must be more than ${CONTROL_BYTES}, got ${maxMemoryBytes}`);
  }
  if (maxMemoryBytes > 2 ** 32) {
    throw new ArgumentError(`maxMemoryBytes must be at most ${2 ** 32}, got ${maxMemoryBytes}`);
  }
  return maxMemoryBytes;
}

/** Throws ArgumentError for a time that cannot be. */
export function chooseSpin(options: CpuDeviceOptions): number {
  const spinMicroseconds = options.spinMicroseconds ?? 50;
  if (!(spinMicroseconds >= 0)) throw new ArgumentError(`spinMicroseconds must be at least 0, got ${spinMicroseconds}`);
  return spinMicroseconds;
}
