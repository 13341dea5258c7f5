/**
 * The CPU device: one WebAssembly memory, the buffers in it, compiled kernels, and the threads that run lists of launches.
 * A device pointer is a byte address in that memory. What a kernel is, and its bytes, come from src/kernels.
 */

import type { KernelDefinition, ParameterTypes, WasmFeatures } from "../kernels/index.ts";
import { CapacityError, DeviceError } from "../tensor/errors.ts";
import { Allocator, type DeviceBuffer } from "./allocator.ts";
import { CommandList } from "./commands.ts";
import { abandonRun, CONTROL_BYTES, publishRun, readFailure, THREADS } from "./controlBlock.ts";
import { type CpuDeviceOptions, chooseFeatures, chooseMemoryBytes, chooseSpin, chooseThreads } from "./cpuOptions.ts";
import { detectPlatform } from "./detectPlatform.ts";
import { Executor } from "./executor.ts";
import { KernelLibrary } from "./kernelLibrary.ts";
import type { DeviceKernel, KernelModule } from "./kernelStore.ts";
import { DeviceMemory, type MemorySource } from "./memory.ts";
import { canSleepHere, type Platform } from "./platform.ts";
import { WorkerPool } from "./pool.ts";

/** What a device's memory holds now, in bytes; and how many kernels were made for it. */
export interface DeviceStats {
  /** Kernels compiled since the device was made: it stays when a step compiles nothing. */
  readonly numKernels: number;
  readonly numBuffers: number;
  readonly usedBytes: number;
  readonly highWaterBytes: number;
  /** Bytes the memory has grown to. */
  readonly memoryBytes: number;
  readonly maxMemoryBytes: number;
}

/** After so long without progress, a run lets the event loop turn, so that a worker's death is heard of. */
const PATIENCE_MS = 20;
const SCRATCH_ALIGNMENT = 128;

/** A kernel may read up to a register past the last element of a row, and throw away what is there. */
const OVERREAD_BYTES = 64;

/** A CPU as a device: its memory, kernels and threads. Made by `create`, ended by `close`. */
export class CpuDevice {
  readonly threads: number;
  readonly features: WasmFeatures;
  readonly #memory: DeviceMemory;
  readonly #allocator: Allocator;
  /** How lists and kernels get their memory. */
  readonly #ownMemory: MemorySource;
  readonly #executor: Executor;
  readonly #pool: WorkerPool;
  readonly #platform: Platform;
  readonly #kernels: KernelLibrary;
  #scratch: DeviceBuffer | undefined;
  #scratchStride = 0;
  /** Why the device runs nothing any more. */
  #end: DeviceError | undefined;
  #closed: Promise<void> | undefined;
  /** Resolves when the run that was asked for last is over; undefined when none is pending. */
  #lastRun: Promise<void> | undefined;

  private constructor(threads: number, features: WasmFeatures, memory: DeviceMemory, platform: Platform, spin: number) {
    this.threads = threads;
    this.features = features;
    this.#memory = memory;
    this.#platform = platform;
    memory.words[THREADS] = threads;
    this.#allocator = new Allocator(CONTROL_BYTES, memory.maxBytes);
    this.#ownMemory = {
      memory,
      allocate: (numBytes, label) => this.allocate(numBytes, label),
      free: (buffer) => this.free(buffer),
    };
    this.#kernels = new KernelLibrary(this.#ownMemory, features);
    this.#executor = new Executor(memory.memory, 0, {
      spinMicroseconds: spin,
      canSleep: features.sharedMemory && canSleepHere(),
    });
    this.#pool = new WorkerPool(memory.memory, (error) => this.#fail(error));
  }

  /** Throws ArgumentError for options that make no sense, DeviceError when this machine cannot do what they ask. */
  static async create(options: CpuDeviceOptions = {}): Promise<CpuDevice> {
    const platform = options.platform ?? (await detectPlatform());
    const features = chooseFeatures(options);
    const threads = chooseThreads(options, features, platform);
    const spin = chooseSpin(options);
    const device = new CpuDevice(
      threads,
      features,
      new DeviceMemory(chooseMemoryBytes(options), features.sharedMemory),
      platform,
      spin,
    );
    try {
      await device.#pool.start(platform, threads - 1, spin);
    } catch (error) {
      await device.close();
      throw error;
    }
    return device;
  }

  /** Zeroed and 64-byte aligned. Throws CapacityError, saying what uses the memory, when there is no room. */
  allocate(numBytes: number, label: string): DeviceBuffer {
    const touchedEnd = this.#allocator.touchedEnd;
    const buffer = this.#allocator.allocate(numBytes, label);
    const end = buffer.pointer + numBytes;
    try {
      this.#memory.ensure(Math.min(end + OVERREAD_BYTES, this.#memory.maxBytes));
    } catch (error) {
      this.#allocator.free(buffer);
      throw error instanceof CapacityError
        ? new CapacityError(`no room for "${label}" (${numBytes} bytes): ${error.message}`)
        : error;
    }
    // Memory that nobody has had is zero already, and filling it would make the system provide it.
    if (buffer.pointer < touchedEnd) this.#memory.bytes.fill(0, buffer.pointer, Math.min(end, touchedEnd));
    return buffer;
  }

  /** Throws ArgumentError when the buffer is not in use. */
  free(buffer: DeviceBuffer): void {
    this.#allocator.free(buffer);
  }

  /** Views of a buffer; never keep one across an allocation. Throw ArgumentError when the buffer is not in use. */
  f32(buffer: DeviceBuffer): Float32Array {
    return new Float32Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes >>> 2);
  }

  i32(buffer: DeviceBuffer): Int32Array {
    return new Int32Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes >>> 2);
  }

  u32(buffer: DeviceBuffer): Uint32Array {
    return new Uint32Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes >>> 2);
  }

  u16(buffer: DeviceBuffer): Uint16Array {
    return new Uint16Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes >>> 1);
  }

  u8(buffer: DeviceBuffer): Uint8Array {
    return new Uint8Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes);
  }

  i8(buffer: DeviceBuffer): Int8Array {
    return new Int8Array(this.#buffer(buffer), buffer.pointer, buffer.numBytes);
  }

  /** Views of any part of the memory: a pointer and a length in elements. */
  f32At(pointer: number, length: number): Float32Array {
    return new Float32Array(this.#memory.memory.buffer, pointer >>> 0, length);
  }

  i32At(pointer: number, length: number): Int32Array {
    return new Int32Array(this.#memory.memory.buffer, pointer >>> 0, length);
  }

  u16At(pointer: number, length: number): Uint16Array {
    return new Uint16Array(this.#memory.memory.buffer, pointer >>> 0, length);
  }

  i8At(pointer: number, length: number): Int8Array {
    return new Int8Array(this.#memory.memory.buffer, pointer >>> 0, length);
  }

  u8At(pointer: number, length: number): Uint8Array {
    return new Uint8Array(this.#memory.memory.buffer, pointer >>> 0, length);
  }

  /**
   * A kernel for one spec (plain JSON data), compiled once for each definition and spec. Throws ArgumentError when another kernel of
   * the same name was compiled with this spec.
   */
  compile<Spec, P extends ParameterTypes>(
    definition: KernelDefinition<Spec, P>,
    spec: Spec,
  ): DeviceKernel<keyof P & string> {
    return this.#kernels.compile(definition, spec);
  }

  /** Makes a compiled module known to all threads. */
  load(module: KernelModule): DeviceKernel {
    return this.#kernels.load(module);
  }

  /** A recorder of launches, to be reset and reused for every step. */
  commands(): CommandList {
    return new CommandList(this.#ownMemory, this.threads);
  }

  /**
   * Executes the launches in order on all threads, with a barrier after each that may not overlap. The calling thread works too:
   * normally all is done before this returns. Runs asked for meanwhile wait their turn.
   * Rejects with DeviceError when a kernel traps (the device stays usable), a worker dies or the device is closed (it does not).
   */
  async run(commands: CommandList): Promise<void> {
    commands.begin(this.#memory);
    const before = this.#lastRun;
    const turn = Promise.withResolvers<void>();
    this.#lastRun = turn.promise;
    try {
      if (before !== undefined) await before;
      this.#checkUsable();
      if (commands.numChunks > 0) await this.#execute(commands);
    } finally {
      commands.end();
      if (this.#lastRun === turn.promise) this.#lastRun = undefined;
      turn.resolve();
    }
  }

  /** Ends the workers and rejects pending runs. May be called again. */
  close(): Promise<void> {
    this.#fail(new DeviceError("the cpu device was closed"));
    this.#closed ??= this.#pool.close();
    return this.#closed;
  }

  stats(): DeviceStats {
    const memoryBytes = this.#memory.numBytes;
    const { numKernels } = this.#kernels;
    return { ...this.#allocator.stats(), numKernels, memoryBytes, maxMemoryBytes: this.#memory.maxBytes };
  }

  async #execute(commands: CommandList): Promise<void> {
    this.#fitScratch();
    const words = this.#memory.words;
    publishRun(words, {
      commandsPointer: commands.commandsPointer,
      numCommands: commands.numCommands,
      numChunks: commands.numChunks,
      widestStage: commands.widestStage,
      paramsPointer: commands.paramsPointer,
      scratchPointer: this.#scratch?.pointer ?? 0,
      scratchStride: this.#scratchStride,
    });
    while (!this.#executor.finish(PATIENCE_MS)) {
      await this.#platform.macrotask();
      this.#checkUsable();
    }
    const failure = readFailure(this.#memory.words);
    if (failure !== undefined) {
      const name = this.#kernels.nameOf(failure.kernel);
      throw new DeviceError(`kernel ${name} failed on thread ${failure.thread}: ${failure.message}`);
    }
  }

  /** Gives every thread scratch for the most demanding kernel. */
  #fitScratch(): void {
    const { largestScratch } = this.#kernels;
    if (largestScratch <= this.#scratchStride) return;
    const stride = Math.ceil(largestScratch / SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT;
    const larger = this.allocate(stride * this.threads, "scratch");
    if (this.#scratch !== undefined) this.free(this.#scratch);
    this.#scratch = larger;
    this.#scratchStride = stride;
  }

  #buffer(buffer: DeviceBuffer): ArrayBufferLike {
    this.#allocator.check(buffer);
    return this.#memory.memory.buffer;
  }

  #checkUsable(): void {
    if (this.#end !== undefined) throw this.#end;
  }

  #fail(error: DeviceError): void {
    if (this.#end !== undefined) return;
    this.#end = error;
    abandonRun(this.#memory.words);
  }
}
