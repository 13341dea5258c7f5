/**
 * The words at the bottom of device memory through which the threads agree on who does what, and how a run is published in them.
 * What the threads do with these words is in `executor.ts`.
 *
 * Work is numbered by tickets. A command list of n chunks takes the tickets [begin, begin + n), and the next run begins one later,
 * at begin + n + 1: ticket numbers are never used twice (until 2^32 have passed), so a thread that slept through a run cannot mistake
 * the next run for it, and a compare-exchange on TICKET proves that everything read since TICKET was loaded belongs to its run.
 *
 * Words that different threads write sit 128 bytes apart (a cache line and the one fetched with it).
 */

/** The next ticket to be claimed. Equal to the run's end when every chunk is claimed. */
export const TICKET = 32;
/** All tickets below this number are finished; equal to the run's end when the run is complete. */
export const DONE = 64;
/** Counts the reasons that the engine thread (thread 0) had to wake up; it sleeps on this word. */
export const ENGINE_WAKE = 96;
/** The same for the workers. */
export const WORKER_WAKE = 128;
/** Number of sleeping workers, plus ENGINE_SLEEPS when thread 0 sleeps. */
export const SLEEPERS = 160;
export const ENGINE_SLEEPS = 1 << 16;
/** Threads of the device, thread 0 included. Written before any of them starts. */
export const THREADS = 175;
/** 1 when the workers must end. */
export const SHUTDOWN = 176;

/** First ticket of the run; also what tells one run from another. */
export const RUN_BEGIN = 192;
/** 0 while the words of this line are being written. */
export const RUN_IS_READABLE = 193;
export const RUN_CHUNKS = 194;
export const RUN_COMMANDS = 195;
export const COMMANDS_POINTER = 196;
export const PARAMS_POINTER = 197;
export const SCRATCH_POINTER = 198;
/** Bytes from one thread's scratch to the next one's. */
export const SCRATCH_STRIDE = 199;
/** Size of the memory when the run was published, in pages of 64 KiB. */
export const MEMORY_PAGES = 200;

/** 0, or 1 + the index of the kernel that failed first in this run. */
export const FAILURE = 224;
export const FAILURE_THREAD = 225;
/** Length in bytes of the message that follows. */
export const FAILURE_LENGTH = 226;
export const FAILURE_TEXT_POINTER = 227 * 4;

/** The control block takes this many bytes at address 0, which is therefore never a valid pointer. */
export const CONTROL_BYTES = 4096;
export const FAILURE_TEXT_BYTES = CONTROL_BYTES - FAILURE_TEXT_POINTER;

/** A command is this many words: */
export const COMMAND_WORDS = 8;
export const COMMAND_KERNEL = 0; // index of the kernel
export const COMMAND_RECORD = 1; // address of the kernel's record, see kernelStore.ts
export const COMMAND_PARAMS = 2; // byte offset of the parameter words from PARAMS_POINTER
export const COMMAND_TASKS = 3;
export const COMMAND_GRAIN = 4; // tasks per chunk
export const COMMAND_BEGIN = 5; // first chunk, counted from the start of the list
export const COMMAND_END = 6;
export const COMMAND_STAGE = 7; // first chunk of the stage: it may begin when all chunks before this one are finished

/** What a run needs beside the words of the list itself. Pointers are byte addresses. */
export interface RunDescription {
  readonly commandsPointer: number;
  readonly numCommands: number;
  readonly numChunks: number;
  /** The most chunks that may ever run at once: how many threads are worth waking. */
  readonly widestStage: number;
  readonly paramsPointer: number;
  readonly scratchPointer: number;
  readonly scratchStride: number;
}

/**
 * Makes a run visible to all threads. The run before it must be complete. `words` must cover the whole memory.
 * Readers (Executor) take the description for whole if it was readable and RUN_BEGIN was the same before and after.
 */
export function publishRun(words: Int32Array, run: RunDescription): void {
  const begin = (Atomics.load(words, TICKET) + 1) | 0;
  Atomics.store(words, RUN_IS_READABLE, 0);
  Atomics.store(words, RUN_CHUNKS, run.numChunks);
  Atomics.store(words, RUN_COMMANDS, run.numCommands);
  Atomics.store(words, COMMANDS_POINTER, run.commandsPointer | 0);
  Atomics.store(words, PARAMS_POINTER, run.paramsPointer | 0);
  Atomics.store(words, SCRATCH_POINTER, run.scratchPointer | 0);
  Atomics.store(words, SCRATCH_STRIDE, run.scratchStride);
  Atomics.store(words, MEMORY_PAGES, Math.floor(words.byteLength / 65536));
  Atomics.store(words, FAILURE, 0);
  Atomics.store(words, RUN_BEGIN, begin);
  Atomics.store(words, RUN_IS_READABLE, 1);
  Atomics.store(words, DONE, begin);
  Atomics.store(words, TICKET, begin);
  wakeThreads(words, run.widestStage);
}

/**
 * Sees to it that `numUseful` threads are awake, if the device has as many. One atomic load when nobody sleeps. Threads that spin
 * count as awake: waking another one for them would only cost time.
 */
export function wakeThreads(words: Int32Array, numUseful: number): void {
  const sleepers = Atomics.load(words, SLEEPERS);
  if (sleepers === 0) return;
  const engineSleeps = sleepers >= ENGINE_SLEEPS ? 1 : 0;
  const numAwake = words[THREADS] - (sleepers % ENGINE_SLEEPS) - engineSleeps;
  let wanted = numUseful - numAwake;
  if (wanted > 0 && engineSleeps === 1) {
    wakeEngine(words);
    wanted--;
  }
  if (wanted > 0) {
    Atomics.add(words, WORKER_WAKE, 1);
    Atomics.notify(words, WORKER_WAKE, wanted);
  }
}

export function wakeEngine(words: Int32Array): void {
  Atomics.add(words, ENGINE_WAKE, 1);
  Atomics.notify(words, ENGINE_WAKE, 1);
}

/** Leaves nothing of the run to claim, and the run forever incomplete: for a device that will not run again. */
export function abandonRun(words: Int32Array): void {
  Atomics.store(words, TICKET, (words[RUN_BEGIN] + words[RUN_CHUNKS]) | 0);
}

/** Asks all workers to end. */
export function publishShutdown(words: Int32Array): void {
  Atomics.store(words, SHUTDOWN, 1);
  Atomics.add(words, WORKER_WAKE, 1);
  Atomics.notify(words, WORKER_WAKE);
}

/** The first failure of the run that has just ended, or undefined. */
export interface Failure {
  readonly kernel: number;
  readonly thread: number;
  readonly message: string;
}

/** Keeps the first failure of a run; later ones are dropped, since they are mostly its consequences. */
export function recordFailure(words: Int32Array, kernel: number, thread: number, message: string): void {
  if (Atomics.compareExchange(words, FAILURE, 0, kernel + 1) !== 0) return;
  const text = new TextEncoder().encode(message).subarray(0, FAILURE_TEXT_BYTES);
  new Uint8Array(words.buffer, FAILURE_TEXT_POINTER, FAILURE_TEXT_BYTES).set(text);
  words[FAILURE_THREAD] = thread;
  Atomics.store(words, FAILURE_LENGTH, text.length);
}

export function readFailure(words: Int32Array): Failure | undefined {
  const kernel = Atomics.load(words, FAILURE) - 1;
  if (kernel < 0) return undefined;
  const numBytes = Atomics.load(words, FAILURE_LENGTH);
  // Copied, because TextDecoder refuses shared memory in browsers.
  const text = new Uint8Array(words.buffer, FAILURE_TEXT_POINTER, numBytes).slice();
  return { kernel, thread: words[FAILURE_THREAD], message: new TextDecoder().decode(text) };
}
