import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type LatentWindow, LatentWindows } from "./index.ts";

describe("LatentWindows", () => {
  it("quantise the oldest block when a window is full, and no sooner", () => {
    const windows = new LatentWindows({ numWindows: 1, capacity: 8, blockSize: 4 });
    const window = opened(windows);
    expect(windows.append(window, 8)).toEqual({
      flushed: { begin: 0, end: 0 },
      paged: { begin: 0, end: 0 },
      recent: { begin: 0, end: 8 },
    });
    expect(windows.append(window, 1)).toEqual({
      flushed: { begin: 0, end: 4 },
      paged: { begin: 8, end: 8 },
      recent: { begin: 8, end: 9 },
    });
    expect([window.start, window.numTokens]).toEqual([4, 9]);
  });

  it("send what never fits straight to pages", () => {
    const windows = new LatentWindows({ numWindows: 1, capacity: 8, blockSize: 4 });
    const window = opened(windows);
    windows.append(window, 3);
    expect(windows.append(window, 20)).toEqual({
      flushed: { begin: 0, end: 3 },
      paged: { begin: 3, end: 16 },
      recent: { begin: 16, end: 23 },
    });
  });

  it("go on where a cached prefix ends", () => {
    const windows = new LatentWindows({ numWindows: 1, capacity: 8, blockSize: 4 });
    const window = opened(windows, 12);
    expect(windows.append(window, 2).recent).toEqual({ begin: 12, end: 14 });
    expect(window.start).toBe(12);
  });

  it("run out as a value, not as an error", () => {
    const windows = new LatentWindows({ numWindows: 1, capacity: 4, blockSize: 4 });
    const window = opened(windows);
    expect(windows.open()).toBeUndefined();
    expect(windows.fork(window)).toBeUndefined();
    windows.close(window);
    expect(windows.numFree).toBe(1);
  });

  it("name what is wrong", () => {
    expect(() => new LatentWindows({ numWindows: 1, capacity: 4, blockSize: 5 })).toThrow(
      "blockSize must be at most capacity = 4, got 5",
    );
    expect(() => new LatentWindows({ numWindows: 0, capacity: 4, blockSize: 4 })).toThrow("numWindows must be");
    const windows = new LatentWindows({ numWindows: 1, capacity: 4, blockSize: 2 });
    const window = opened(windows);
    expect(() => windows.step([{ window, numNewTokens: 9, blockTable: [0] }], 4)).toThrow(
      "sequences[0].blockTable must have the 2 pages of its first 6 tokens, got 1",
    );
    expect(window.numTokens).toBe(0);
    expect(() => windows.truncate(window, 1)).toThrow("numTokens must be from 0 to the 0 of the sequence, got 1");
    windows.close(window);
    expect(() => windows.append(window, 1)).toThrow("window 0 is not open");
  });

  it("keep every token once and in order, whatever comes", () => {
    fc.assert(
      fc.property(
        fc.record({ capacity: fc.integer({ min: 1, max: 9 }), share: fc.double({ min: 0, max: 1, noNaN: true }) }),
        fc.integer({ min: 1, max: 5 }),
        fc.array(
          fc.record({
            act: fc.constantFrom("open", "append", "append", "append", "truncate", "fork", "close"),
            which: fc.nat(5),
            count: fc.integer({ min: 0, max: 12 }),
          }),
          { maxLength: 40 },
        ),
        ({ capacity, share }, pageSize, acts) => {
          const blockSize = Math.max(1, Math.round(capacity * share));
          const model = new Model(new LatentWindows({ numWindows: 3, capacity, blockSize }), pageSize);
          for (const { act, which, count } of acts) {
            model.act(act, which, count);
            model.check();
          }
        },
      ),
      { numRuns: 300, seed: 5 },
    );
  });
});

interface ModelSequence {
  readonly window: LatentWindow;
  /** What its tokens are, by position: numbers that no two tokens share. */
  tokens: number[];
  /** Pages of its own: [slot]. */
  readonly pages: Map<number, number>;
  readonly blockTable: number[];
  wasTruncated: boolean;
}

/** Plain arrays beside the books: pages and windows hold what the arrays of each step say, and reading must give the tokens back. */
class Model {
  readonly #windows: LatentWindows;
  readonly #pageSize: number;
  readonly #rings = new Map<number, number>();
  #sequences: ModelSequence[] = [];
  #nextToken = 0;
  #nextPage = 0;

  constructor(windows: LatentWindows, pageSize: number) {
    this.#windows = windows;
    this.#pageSize = pageSize;
  }

  act(act: string, which: number, count: number): void {
    const sequence = this.#sequences[which % Math.max(1, this.#sequences.length)];
    if (act === "open") {
      const window = this.#windows.open();
      if (window) this.#sequences.push({ window, tokens: [], pages: new Map(), blockTable: [], wasTruncated: false });
    } else if (!sequence) {
      return;
    } else if (act === "append") {
      this.#append(sequence, count);
    } else if (act === "truncate") {
      sequence.tokens = sequence.tokens.slice(0, Math.max(0, sequence.tokens.length - count));
      sequence.wasTruncated = true;
      this.#windows.truncate(sequence.window, sequence.tokens.length);
    } else if (act === "fork") {
      const window = this.#windows.fork(sequence.window);
      if (!window) return;
      const { capacity } = this.#windows.spec;
      for (let slot = 0; slot < capacity; slot++) {
        const value = this.#rings.get(sequence.window.window * capacity + slot);
        if (value !== undefined) this.#rings.set(window.window * capacity + slot, value);
      }
      const { tokens, blockTable, wasTruncated } = sequence;
      this.#sequences.push({ window, tokens: [...tokens], pages: new Map(sequence.pages), blockTable, wasTruncated });
    } else {
      this.#windows.close(sequence.window);
      this.#sequences = this.#sequences.filter((other) => other !== sequence);
    }
  }

  #append(sequence: ModelSequence, count: number): void {
    const { window, tokens, pages, blockTable } = sequence;
    while (blockTable.length * this.#pageSize < tokens.length + count) blockTable.push(this.#nextPage++);
    const added = Array.from({ length: count }, () => this.#nextToken++);
    const step = this.#windows.step([{ window, numNewTokens: count, blockTable }], this.#pageSize);
    const { capacity } = this.#windows.spec;
    for (let i = 0; i < step.flushes.length; i += 3) {
      const [from, slot, to] = step.flushes.subarray(i, i + 3);
      expect(from).toBe(window.window);
      pages.set(to, this.#rings.get(from * capacity + slot) ?? Number.NaN);
      this.#rings.delete(from * capacity + slot);
    }
    added.forEach((token, i) => {
      const [page, ring] = [step.pageSlots[i], step.windowSlots[i]];
      expect((page === -1) !== (ring === -1)).toBe(true);
      if (page !== -1) pages.set(page, token);
      else this.#rings.set(ring, token);
    });
    tokens.push(...added);
  }

  check(): void {
    const { capacity, blockSize, numWindows } = this.#windows.spec;
    expect(this.#windows.numFree).toBe(numWindows - this.#sequences.length);
    for (const { window, tokens, pages, blockTable, wasTruncated } of this.#sequences) {
      const { start, numTokens } = window;
      expect(numTokens).toBe(tokens.length);
      expect(numTokens - start).toBeLessThanOrEqual(capacity);
      if (!wasTruncated) expect(start).toBe(blockSize * Math.ceil(Math.max(0, numTokens - capacity) / blockSize));
      const found = tokens.map((_, t) => {
        if (t >= start) return this.#rings.get(window.window * capacity + (t % capacity));
        return pages.get(blockTable[Math.floor(t / this.#pageSize)] * this.#pageSize + (t % this.#pageSize));
      });
      expect(found).toEqual(tokens);
    }
  }
}

function opened(windows: LatentWindows, numCached = 0): LatentWindow {
  const window = windows.open(numCached);
  if (!window) throw new Error("no window is free");
  return window;
}
