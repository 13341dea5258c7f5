/**
 * What every thread of a device does: claim a chunk of tasks, run it, count it as finished, until the run is complete.
 * Thread 0 is the caller of `CpuDevice.run`; the others are workers. The words they share are described in `controlBlock.ts`,
 * starting and ending workers is left to `pool.ts`.
 *
 * Two rules keep a thread that the system has put aside from holding up the others: a chunk is claimed only when it may begin at
 * once, and completion counts finished chunks, never arrived threads. (llama.cpp's spinning barrier counts threads, and falls to a
 * tenth of its speed when one core is busy elsewhere.)
 */

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
  COMMANDS_POINTER,
  DONE,
  ENGINE_SLEEPS,
  ENGINE_WAKE,
  MEMORY_PAGES,
  PARAMS_POINTER,
  RUN_BEGIN,
  RUN_CHUNKS,
  RUN_COMMANDS,
  RUN_IS_READABLE,
  recordFailure,
  SCRATCH_POINTER,
  SCRATCH_STRIDE,
  SHUTDOWN,
  SLEEPERS,
  TICKET,
  WORKER_WAKE,
  wakeEngine,
  wakeThreads,
} from "./controlBlock.ts";
import { instantiateKernel, type KernelFunction } from "./kernelStore.ts";

export interface ExecutorOptions {
  /** How long a thread with nothing to do spins before it sleeps. */
  readonly spinMicroseconds: number;
  /** False where Atomics.wait is forbidden: in a browser's main thread. */
  readonly canSleep: boolean;
}

/** Rounds of spinning between two looks at the clock, which costs as much as one round. */
const ROUNDS_PER_CLOCK = 16;

const SLEEP_INSIDE_RUN_MS = 1;

export class Executor {
  readonly #memory: WebAssembly.Memory;
  readonly #thread: number;
  readonly #options: ExecutorOptions;
  readonly #kernels: (KernelFunction | undefined)[] = [];
  #words: Int32Array;

  // The run this thread is in, copied out of the control block when it first sees the run.
  #runBegin = 0; // runs begin at 1
  #numChunks = 0;
  #numCommands = 0;
  #commands = 0; // word index of the list
  #params = 0;
  #scratch = 0;
  #cursor = 0; // word index of the command that holds the last chunk looked at

  constructor(memory: WebAssembly.Memory, thread: number, options: ExecutorOptions) {
    this.#memory = memory;
    this.#thread = thread;
    this.#options = options;
    this.#words = new Int32Array(memory.buffer);
  }

  /** Thread 0: works on the published run. True when it is complete, false when nothing has moved for about `patienceMs`. */
  finish(patienceMs: number): boolean {
    return this.#work(patienceMs);
  }

  /** A worker: takes part in every run until the device shuts down. */
  serve(): void {
    this.#work(Infinity);
  }

  #work(patienceMs: number): boolean {
    const isEngine = this.#thread === 0;
    let rounds = 0;
    let idleSince = 0;
    this.#refreshViews();
    for (;;) {
      const words = this.#words;
      if (this.#claimAndRun(words)) {
        rounds = 0;
        continue;
      }
      if (isEngine ? this.#isComplete(words) : Atomics.load(words, SHUTDOWN) === 1) return true;
      if (rounds++ % ROUNDS_PER_CLOCK === 0) {
        const now = performance.now();
        if (rounds === 1) idleSince = now;
        const idleMs = now - idleSince;
        if (idleMs >= patienceMs) return false;
        if (idleMs * 1000 >= this.#options.spinMicroseconds) {
          if (this.#options.canSleep) this.#sleep(words, patienceMs - idleMs);
          else if (isEngine) return false;
        }
      }
      Atomics.pause?.();
    }
  }

  /** Claims the next chunk and runs it. False when there is none that may begin now. */
  #claimAndRun(words: Int32Array): boolean {
    if (Atomics.load(words, RUN_BEGIN) !== this.#runBegin) {
      this.#enterRun();
      return false;
    }
    const ticket = Atomics.load(words, TICKET);
    const chunk = (ticket - this.#runBegin) | 0;
    if (chunk < 0 || chunk >= this.#numChunks) return false;
    const lastCommand = this.#commands + (this.#numCommands - 1) * COMMAND_WORDS;
    // If the ticket is gone by now, the list may be in the middle of being rewritten. Then the search goes astray, which does no
    // harm, because the exchange below fails: as long as this ticket is the next one, its run is not over and the list stands.
    let command = this.#cursor;
    while (command < lastCommand && chunk >= words[command + COMMAND_END]) command += COMMAND_WORDS;
    this.#cursor = command;
    if (((Atomics.load(words, DONE) - this.#runBegin) | 0) < words[command + COMMAND_STAGE]) return false;
    if (Atomics.compareExchange(words, TICKET, ticket, (ticket + 1) | 0) !== ticket) return true;

    const grain = words[command + COMMAND_GRAIN];
    const begin = (chunk - words[command + COMMAND_BEGIN]) * grain;
    const end = Math.min(begin + grain, words[command + COMMAND_TASKS]);
    let numFinished = 1;
    const kernel = words[command + COMMAND_KERNEL];
    try {
      const run = this.#kernels[kernel] ?? this.#loadKernel(kernel, words[command + COMMAND_RECORD] >>> 0);
      run((this.#params + words[command + COMMAND_PARAMS]) | 0, begin, end, this.#scratch);
    } catch (error) {
      recordFailure(words, kernel, this.#thread, error instanceof Error ? error.message : String(error));
      numFinished += this.#claimRest(words);
    }
    const done = (Atomics.add(words, DONE, numFinished) + numFinished) | 0;
    if (Atomics.load(words, SLEEPERS) !== 0) this.#wakeForNextStage(words, (done - this.#runBegin) | 0);
    return true;
  }

  /** Copies the description of the published run, unless it is just being written or not all of the memory is visible yet. */
  #enterRun(): void {
    this.#refreshViews();
    const words = this.#words;
    const begin = Atomics.load(words, RUN_BEGIN);
    const numChunks = Atomics.load(words, RUN_CHUNKS);
    const numCommands = Atomics.load(words, RUN_COMMANDS);
    const commands = Atomics.load(words, COMMANDS_POINTER) >>> 2;
    const params = Atomics.load(words, PARAMS_POINTER);
    const scratch = Atomics.load(words, SCRATCH_POINTER);
    const scratchStride = Atomics.load(words, SCRATCH_STRIDE);
    const memoryPages = Atomics.load(words, MEMORY_PAGES);
    if (Atomics.load(words, RUN_IS_READABLE) === 0 || Atomics.load(words, RUN_BEGIN) !== begin) return;
    // Another thread's memory.grow reaches this thread's memory.buffer a moment later.
    if (words.byteLength < memoryPages * 65536) return;
    this.#numChunks = numChunks;
    this.#numCommands = numCommands;
    this.#commands = commands;
    this.#params = params;
    this.#scratch = (scratch + this.#thread * scratchStride) | 0;
    this.#cursor = commands;
    this.#runBegin = begin;
  }

  #refreshViews(): void {
    const buffer = this.#memory.buffer;
    if (this.#words.buffer !== buffer) this.#words = new Int32Array(buffer);
  }

  #loadKernel(kernel: number, recordPointer: number): KernelFunction {
    const run = instantiateKernel(this.#memory, this.#words, recordPointer);
    this.#kernels[kernel] = run;
    return run;
  }

  #isComplete(words: Int32Array): boolean {
    return (
      this.#runBegin === words[RUN_BEGIN] && Atomics.load(words, DONE) === ((this.#runBegin + this.#numChunks) | 0)
    );
  }

  /** After a failure: takes all chunks that nobody has claimed, so that the run ends. Returns their number. */
  #claimRest(words: Int32Array): number {
    const end = (this.#runBegin + this.#numChunks) | 0;
    for (;;) {
      const ticket = Atomics.load(words, TICKET);
      if (Atomics.compareExchange(words, TICKET, ticket, end) === ticket) return (end - ticket) | 0;
    }
  }

  /** Called with threads asleep: if `done` chunks end a stage, wakes as many threads as the next stage can use. */
  #wakeForNextStage(words: Int32Array, done: number): void {
    if (done === this.#numChunks) {
      if (Atomics.load(words, SLEEPERS) >= ENGINE_SLEEPS) wakeEngine(words);
      return;
    }
    const end = this.#commands + this.#numCommands * COMMAND_WORDS;
    let command = this.#cursor;
    while (command < end && words[command + COMMAND_BEGIN] < done) command += COMMAND_WORDS;
    if (command >= end || words[command + COMMAND_STAGE] !== done) return;
    let stageEnd = done;
    while (command < end && words[command + COMMAND_STAGE] === done) {
      stageEnd = words[command + COMMAND_END];
      command += COMMAND_WORDS;
    }
    wakeThreads(words, stageEnd - done);
  }

  /** Sleeps until another thread changes something worth looking at. */
  #sleep(words: Int32Array, patienceMs: number): void {
    const isEngine = this.#thread === 0;
    const weight = isEngine ? ENGINE_SLEEPS : 1;
    const wake = isEngine ? ENGINE_WAKE : WORKER_WAKE;
    Atomics.add(words, SLEEPERS, weight);
    const seen = Atomics.load(words, wake);
    // Whoever changes the state after this look sees us among the sleepers, and moves the wake word before notifying.
    if (!this.#canProceed(words)) Atomics.wait(words, wake, seen, Math.min(patienceMs, this.#longestSleepMs(words)));
    Atomics.sub(words, SLEEPERS, weight);
  }

  /**
   * Inside a run nobody relies on being woken alone: the thread that should claim a stage's only chunk may be put aside by the
   * system just then. A worker with nothing left to claim sleeps until the next run.
   */
  #longestSleepMs(words: Int32Array): number {
    const chunk = (Atomics.load(words, TICKET) - this.#runBegin) | 0;
    return this.#thread === 0 || (chunk >= 0 && chunk < this.#numChunks) ? SLEEP_INSIDE_RUN_MS : Infinity;
  }

  #canProceed(words: Int32Array): boolean {
    if (Atomics.load(words, SHUTDOWN) === 1) return true;
    if (Atomics.load(words, RUN_BEGIN) !== this.#runBegin) return true;
    if (this.#thread === 0 && this.#isComplete(words)) return true;
    const chunk = (Atomics.load(words, TICKET) - this.#runBegin) | 0;
    if (chunk < 0 || chunk >= this.#numChunks) return false;
    const end = this.#commands + this.#numCommands * COMMAND_WORDS;
    let command = this.#commands;
    while (command < end && chunk >= words[command + COMMAND_END]) command += COMMAND_WORDS;
    return command < end && ((Atomics.load(words, DONE) - this.#runBegin) | 0) >= words[command + COMMAND_STAGE];
  }
}
