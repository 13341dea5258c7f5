/**
 * A recorded list of kernel launches, as words in device memory that every thread reads. Recording writes into room that is kept
 * from step to step: in the steady state a launch allocates nothing. Running a list is left to `cpuDevice.ts` and `executor.ts`.
 */

import { ArgumentError } from "../tensor/errors.ts";
import type { DeviceBuffer } from "./allocator.ts";
import {
  COMMAND_BEGIN,
  COMMAND_END,
  COMMAND_GRAIN,
  COMMAND_KERNEL,
  COMMAND_PARAMS,
  COMMAND_RECORD,
  COMMAND_STAGE,
  COMMAND_TASKS,
  COMMAND_WORDS,
} from "./controlBlock.ts";
import type { DeviceKernel } from "./kernelStore.ts";
import type { DeviceMemory, MemorySource } from "./memory.ts";

/** How a launch is shared among threads. */
export interface LaunchOptions {
  /** Tasks taken at a time from the shared counter. Default: about eight chunks for each thread. */
  readonly grain?: number;
  /** The next launch need not wait for this one. A later launch without such leave before it waits for both. */
  readonly overlap?: boolean;
}

const INITIAL_COMMANDS = 256;
const INITIAL_PARAM_WORDS = 4096;
const CHUNKS_PER_THREAD = 8;
const MAX_CHUNKS = 2 ** 30; // tickets are compared by signed difference

/** A list of launches in device memory: recorded, run by `CpuDevice.run` as often as wanted, reset, recorded again. */
export class CommandList {
  readonly #owner: MemorySource;
  readonly #threads: number;
  #commands: DeviceBuffer;
  #params: DeviceBuffer;
  #numCommands = 0;
  #numParamWords = 0;
  #numChunks = 0;
  #stage = 0;
  #widestStage = 0;
  #nextMayOverlap = false;
  #isRunning = false;
  #isFreed = false;

  constructor(owner: MemorySource, threads: number) {
    this.#owner = owner;
    this.#threads = threads;
    this.#commands = owner.allocate(INITIAL_COMMANDS * COMMAND_WORDS * 4, "commands");
    this.#params = owner.allocate(INITIAL_PARAM_WORDS * 4, "command parameters");
  }

  /** Launches recorded since the last reset, without those of no tasks. */
  get numCommands(): number {
    return this.#numCommands;
  }

  get numChunks(): number {
    return this.#numChunks;
  }

  /** The most chunks between two barriers. */
  get widestStage(): number {
    return this.#widestStage;
  }

  get commandsPointer(): number {
    return this.#commands.pointer;
  }

  get paramsPointer(): number {
    return this.#params.pointer;
  }

  /** The device marks the time in which threads read the list, and it cannot be changed. */
  begin(memory: DeviceMemory): void {
    this.#checkIdle("run");
    if (memory !== this.#owner.memory) throw new ArgumentError("run: these commands were recorded for another device");
    this.#isRunning = true;
  }

  end(): void {
    this.#isRunning = false;
  }

  /**
   * Records `kernel` over the tasks 0 to `numTasks`; 0 tasks is no launch at all. Pointers are byte addresses; i32 arguments may be
   * given as signed or unsigned. Throws ArgumentError for a missing or unknown argument, or a value that is not an integer.
   */
  launch<Name extends string>(
    kernel: DeviceKernel<Name>,
    args: { readonly [K in Name]: number },
    numTasks: number,
    options?: LaunchOptions,
  ): void {
    this.#checkIdle("launch");
    if (kernel.memory !== this.#owner.memory) throw new ArgumentError(`${kernel.name} was compiled for another device`);
    if (!Number.isInteger(numTasks) || numTasks < 0 || numTasks > 0x7fffffff) {
      throw new ArgumentError(`numTasks of ${kernel.name} must be a whole number below 2^31, got ${numTasks}`);
    }
    const grain = options?.grain ?? Math.max(1, Math.ceil(numTasks / (this.#threads * CHUNKS_PER_THREAD)));
    if (!Number.isInteger(grain) || grain < 1 || grain > 0x3fffffff) {
      throw new ArgumentError(`grain of ${kernel.name} must be a whole number of tasks of at least 1, got ${grain}`);
    }
    this.#makeRoom(kernel.parameterNames.length);
    this.#writeParams(kernel, args);
    if (numTasks === 0) return;

    const begin = this.#numChunks;
    const end = begin + Math.ceil(numTasks / grain);
    if (end > MAX_CHUNKS)
      throw new ArgumentError(`${kernel.name}: a list holds at most 2^30 chunks, use a larger grain than ${grain}`);
    if (!this.#nextMayOverlap) this.#stage = begin;
    this.#nextMayOverlap = options?.overlap ?? false;

    const words = this.#owner.memory.words;
    const command = (this.#commands.pointer >>> 2) + this.#numCommands * COMMAND_WORDS;
    words[command + COMMAND_KERNEL] = kernel.index;
    words[command + COMMAND_RECORD] = kernel.recordPointer;
    words[command + COMMAND_PARAMS] = this.#numParamWords * 4;
    words[command + COMMAND_TASKS] = numTasks;
    words[command + COMMAND_GRAIN] = grain;
    words[command + COMMAND_BEGIN] = begin;
    words[command + COMMAND_END] = end;
    words[command + COMMAND_STAGE] = this.#stage;
    this.#numCommands++;
    this.#numParamWords += kernel.parameterNames.length;
    this.#numChunks = end;
    this.#widestStage = Math.max(this.#widestStage, end - this.#stage);
  }

  /** Forgets all launches and keeps the room. */
  reset(): void {
    this.#checkIdle("reset");
    this.#numCommands = 0;
    this.#numParamWords = 0;
    this.#numChunks = 0;
    this.#stage = 0;
    this.#widestStage = 0;
    this.#nextMayOverlap = false;
  }

  /** Gives the list's memory back to the device; the list cannot be used any more. */
  free(): void {
    this.#checkIdle("free");
    this.#isFreed = true;
    this.#owner.free(this.#commands);
    this.#owner.free(this.#params);
  }

  #checkIdle(verb: string): void {
    if (this.#isFreed) throw new ArgumentError(`${verb}: this command list was freed`);
    if (this.#isRunning)
      throw new ArgumentError(`${verb}: this command list is running, await device.run(commands) first`);
  }

  #writeParams<Name extends string>(kernel: DeviceKernel<Name>, args: { readonly [K in Name]: number }): void {
    const { parameterNames, isFloat } = kernel;
    const { words, floats } = this.#owner.memory;
    const first = (this.#params.pointer >>> 2) + this.#numParamWords;
    let numArgs = 0;
    for (const _name in args) numArgs++;
    for (let index = 0; index < parameterNames.length; index++) {
      const name = parameterNames[index];
      const value = args[name];
      if (typeof value !== "number") throw missingArgument(kernel, name, value);
      if (isFloat[index] === 1) floats[first + index] = value;
      else if ((value | 0) === value || value >>> 0 === value) words[first + index] = value;
      else
        throw new ArgumentError(
          `argument ${name} of ${kernel.name} must be a 32-bit integer or an address, got ${value}`,
        );
    }
    if (numArgs !== parameterNames.length) throw unknownArgument(kernel, args);
  }

  #makeRoom(numParams: number): void {
    const numCommandBytes = (this.#numCommands + 1) * COMMAND_WORDS * 4;
    if (numCommandBytes > this.#commands.numBytes) this.#commands = this.#double(this.#commands, numCommandBytes);
    const numParamBytes = (this.#numParamWords + numParams) * 4;
    if (numParamBytes > this.#params.numBytes) this.#params = this.#double(this.#params, numParamBytes);
  }

  /** A copy with at least twice the room and `numBytes`; commands refer to parameters by offset, so both may move. */
  #double(buffer: DeviceBuffer, numBytes: number): DeviceBuffer {
    const larger = this.#owner.allocate(Math.max(buffer.numBytes * 2, numBytes), buffer.label);
    this.#owner.memory.bytes.copyWithin(larger.pointer, buffer.pointer, buffer.pointer + buffer.numBytes);
    this.#owner.free(buffer);
    return larger;
  }
}

function missingArgument(kernel: DeviceKernel, name: string, value: unknown): ArgumentError {
  return new ArgumentError(
    value === undefined
      ? `launch of ${kernel.name} lacks argument ${name}: it takes ${kernel.parameterNames.join(", ")}`
      : `argument ${name} of ${kernel.name} must be a number, got ${String(value)}`,
  );
}

function unknownArgument(kernel: DeviceKernel, args: object): ArgumentError {
  const unknown = Object.keys(args).filter((name) => !kernel.parameterNames.includes(name));
  return new ArgumentError(
    `${kernel.name} has no argument ${unknown.join(", ")}: it takes ${kernel.parameterNames.join(", ")}`,
  );
}
