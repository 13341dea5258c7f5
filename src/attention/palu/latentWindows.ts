/**
 * Which tokens of a sequence are still at full precision: the books of the windows beside a quantised cache. Host only; ops/appendLatent
 * moves the numbers, and which pages a sequence has is src/cache's business.
 */
import { windowSlot } from "../../ops/appendLatent/index.ts";
import type { RecentTokens } from "../../ops/attention/index.ts";
import { ArgumentError } from "../../tensor/index.ts";

export interface LatentWindowsSpec {
  readonly numWindows: number;
  /** Tokens of a window. */
  readonly capacity: number;
  /** Tokens that leave a full window together: at most `capacity`. A multiple of the page size writes whole pages. */
  readonly blockSize: number;
}

/** The window of one sequence. Tokens `start` up to `numTokens` are in it, the ones before in pages. */
export interface LatentWindow {
  readonly window: number;
  readonly start: number;
  readonly numTokens: number;
}

/** Tokens `begin` up to `end` of a sequence; empty where they are equal. */
export interface TokenRange {
  readonly begin: number;
  readonly end: number;
}

/** What an append makes the device do, in this order. */
export interface WindowAppend {
  /** These leave the window for their pages. */
  readonly flushed: TokenRange;
  /** New tokens that never were in the window: too many came at once. */
  readonly paged: TokenRange;
  /** New tokens for the window. */
  readonly recent: TokenRange;
}

/** A sequence of a step with its new tokens. */
export interface WindowStepSequence {
  readonly window: LatentWindow;
  readonly numNewTokens: number;
  /** Page ids of the sequence: at least of the tokens that are in pages after this step. */
  readonly blockTable: ArrayLike<number>;
}

/** One step in the arrays that the device takes. New tokens are numbered through all sequences. */
export interface WindowStep {
  /** [flushes, 3]: window, slot in the window, slot of the pages. For recordFlushWindow, before anything is appended. */
  readonly flushes: Int32Array;
  /** [new tokens]: slot of the pages, -1 for tokens that go to their window. */
  readonly pageSlots: Int32Array;
  /** [new tokens]: slot among all windows, -1 for tokens that go to pages. */
  readonly windowSlots: Int32Array;
  /** Of each sequence after the step: `AttentionBatch.recent`. */
  readonly recent: RecentTokens;
}

/**
 * Windows for as many sequences. A window never holds more than `capacity` tokens; when new ones would not fit, the oldest leave in blocks
 * that end at multiples of `blockSize`. Where a window begins follows from the length alone, whether tokens come one by one or all at once:
 * the first multiple of blockSize that leaves at most capacity tokens.
 *
 * A prompt longer than a window is quantised in the step that computes it, all but its end. Source: KIVI (arXiv 2402.02750), Palu's
 * `residual_length`.
 */
export class LatentWindows {
  readonly spec: LatentWindowsSpec;
  readonly #free: number[];
  readonly #states = new Map<number, { start: number; numTokens: number }>();

  /** Throws ArgumentError for sizes that are out of range. */
  constructor(spec: LatentWindowsSpec) {
    const { numWindows, capacity, blockSize } = spec;
    for (const [name, value] of Object.entries({ numWindows, capacity, blockSize })) {
      if (!Number.isInteger(value) || value < 1) {
        throw new ArgumentError(`${name} must be an integer of at least 1, got ${value}`);
      }
    }
    if (blockSize > capacity) {
      throw new ArgumentError(`blockSize must be at most capacity = ${capacity}, got ${blockSize}`);
    }
    this.spec = spec;
    this.#free = Array.from({ length: numWindows }, (_, i) => numWindows - 1 - i);
  }

  get numFree(): number {
    return this.#free.length;
  }

  /**
   * A window for a sequence, or undefined when none is free.
   *
   * @param numCached Tokens that are in pages already: a cached prefix.
   */
  open(numCached = 0): LatentWindow | undefined {
    if (!Number.isInteger(numCached) || numCached < 0) {
      throw new ArgumentError(`numCached must be a whole number, got ${numCached}`);
    }
    const window = this.#free.pop();
    if (window === undefined) return undefined;
    this.#states.set(window, { start: numCached, numTokens: numCached });
    return this.#handle(window);
  }

  /** Gives the window of a finished sequence back. */
  close({ window }: LatentWindow): void {
    this.#state(window);
    this.#states.delete(window);
    this.#free.push(window);
  }

  /** Adds tokens to a sequence and says where they and the ones they push out go. */
  append({ window }: LatentWindow, numNewTokens: number): WindowAppend {
    if (!Number.isInteger(numNewTokens) || numNewTokens < 0) {
      throw new ArgumentError(`numNewTokens must be a whole number, got ${numNewTokens}`);
    }
    const state = this.#state(window);
    const { capacity, blockSize } = this.spec;
    const [oldStart, oldEnd] = [state.start, state.numTokens];
    const end = oldEnd + numNewTokens;
    const start = Math.max(oldStart, blockSize * Math.ceil((end - capacity) / blockSize));
    state.start = start;
    state.numTokens = end;
    // A block may reach into the new tokens: blocks end at multiples, windows anywhere.
    return {
      flushed: { begin: oldStart, end: Math.min(start, oldEnd) },
      paged: { begin: oldEnd, end: Math.max(start, oldEnd) },
      recent: { begin: Math.max(start, oldEnd), end },
    };
  }

  /** Takes tokens back from the end, down to `numTokens`. What was quantised stays so. */
  truncate({ window }: LatentWindow, numTokens: number): void {
    const state = this.#state(window);
    if (!Number.isInteger(numTokens) || numTokens < 0 || numTokens > state.numTokens) {
      throw new ArgumentError(`numTokens must be from 0 to the ${state.numTokens} of the sequence, got ${numTokens}`);
    }
    state.numTokens = numTokens;
    state.start = Math.min(state.start, numTokens);
  }

  /**
   * A window for a copy of a sequence, or undefined when none is free. The device has to copy window `from.window` to the new one
   * (recordCopyPages, with windows as pages) before either is written.
   */
  fork(from: LatentWindow): LatentWindow | undefined {
    const state = this.#state(from.window);
    const copy = this.open();
    if (copy) this.#states.set(copy.window, { ...state });
    return copy;
  }

  /** Appends to every sequence of a step. Throws ArgumentError, before it changes anything, for a block table that is too short. */
  step(sequences: readonly WindowStepSequence[], pageSize: number): WindowStep {
    const { capacity, numWindows } = this.spec;
    for (const [s, sequence] of sequences.entries()) this.#checkTable(s, sequence, pageSize);
    const numNewTokens = sequences.reduce((sum, sequence) => sum + sequence.numNewTokens, 0);
    const flushes: number[] = [];
    const pageSlots = new Int32Array(numNewTokens).fill(-1);
    const windowSlots = new Int32Array(numNewTokens).fill(-1);
    const starts = new Int32Array(sequences.length);
    const windows = new Int32Array(sequences.length);
    let first = 0;
    for (const [s, { window: handle, numNewTokens: added, blockTable }] of sequences.entries()) {
      const { window } = handle;
      const pageSlot = (token: number): number =>
        blockTable[Math.floor(token / pageSize)] * pageSize + (token % pageSize);
      const { flushed, paged, recent } = this.append(handle, added);
      for (let t = flushed.begin; t < flushed.end; t++) flushes.push(window, t % capacity, pageSlot(t));
      const begin = paged.begin;
      for (let t = paged.begin; t < paged.end; t++) pageSlots[first + t - begin] = pageSlot(t);
      for (let t = recent.begin; t < recent.end; t++) {
        windowSlots[first + t - begin] = windowSlot(window, t, capacity);
      }
      starts[s] = this.#state(window).start;
      windows[s] = window;
      first += added;
    }
    return {
      flushes: Int32Array.from(flushes),
      pageSlots,
      windowSlots,
      recent: { starts, windows, capacity, numWindows },
    };
  }

  #checkTable(s: number, { window, numNewTokens, blockTable }: WindowStepSequence, pageSize: number): void {
    const { capacity, blockSize } = this.spec;
    const { start, numTokens } = this.#state(window.window);
    const paged = Math.max(start, blockSize * Math.ceil((numTokens + numNewTokens - capacity) / blockSize));
    const needed = Math.ceil(paged / pageSize);
    if (blockTable.length >= needed) return;
    throw new ArgumentError(
      `sequences[${s}].blockTable must have the ${needed} pages of its first ${paged} tokens, got ${blockTable.length}`,
    );
  }

  #state(window: number): { start: number; numTokens: number } {
    const state = this.#states.get(window);
    if (!state) throw new ArgumentError(`window ${window} is not open`);
    return state;
  }

  /** Reads through to the books, so that a handle is never out of date. */
  #handle(window: number): LatentWindow {
    const state = (): { start: number; numTokens: number } => this.#state(window);
    return {
      window,
      get start() {
        return state().start;
      },
      get numTokens() {
        return state().numTokens;
      },
    };
  }
}
