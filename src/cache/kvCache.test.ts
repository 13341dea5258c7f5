import { describe, expect, it } from "vitest";
import type { CacheSequence } from "./cacheSequence.ts";
import { KvCache, type PageCopy } from "./kvCache.ts";

/** Adds, appends and commits all tokens at once, as a step that computes them would. */
function addWhole(cache: KvCache, tokens: readonly number[], salt = ""): CacheSequence {
  const ids = Int32Array.from(tokens);
  const sequence = cache.add(ids, ids.length, salt);
  append(cache, sequence, ids.subarray(sequence.numTokens));
  return sequence;
}

function append(cache: KvCache, sequence: CacheSequence, tokens: ArrayLike<number>): PageCopy | undefined {
  const ids = Int32Array.from(tokens);
  const copy = cache.append(sequence, ids, 0, ids.length, new Int32Array(ids.length));
  cache.commit(sequence, sequence.numTokens);
  return copy;
}

const range = (begin: number, end: number) => Array.from({ length: end - begin }, (_, index) => begin + index);

describe("KvCache", () => {
  it("follows the worked example of vLLM's design notes", () => {
    const cache = new KvCache({ numPages: 10, pageSize: 4 });
    const prompt = range(0, 15);
    const first = addWhole(cache, prompt);
    expect(first.table.toArray()).toEqual([0, 1, 2, 3]);
    append(cache, first, [15, 16]);
    expect(first.table.toArray()).toEqual([0, 1, 2, 3, 4]);

    const second = addWhole(cache, [...prompt.slice(0, 10), 90, 91, 92, 93]);
    expect(second.table.toArray()).toEqual([0, 1, 5, 6]);

    cache.free(first);
    expect([...cache.pool.freePages()]).toEqual([7, 8, 9, 4, 3, 2]);
    cache.free(second);
    expect([...cache.pool.freePages()]).toEqual([7, 8, 9, 4, 3, 2, 6, 5, 1, 0]);

    const tokens = Int32Array.from([...prompt.slice(0, 12), ...range(100, 117)]);
    expect(cache.canAdd(tokens, tokens.length)).toBe(true);
    const third = cache.add(tokens, tokens.length);
    expect(third.numTokens).toBe(12);
    expect([...cache.pool.freePages()]).toEqual([7, 8, 9, 4, 3, 6, 5]);
    append(cache, third, tokens.subarray(12));
    expect(third.table.toArray()).toEqual([0, 1, 2, 7, 8, 9, 4, 3]);
    expect(cache.stats()).toMatchObject({
      usedPages: 8,
      cachedPages: 1,
      freePages: 1,
      evictions: 1,
      hitTokens: 8 + 12,
    });
  });

  it("leaves at least one token to compute, and hits whole pages only", () => {
    const cache = new KvCache({ numPages: 8, pageSize: 4 });
    addWhole(cache, range(0, 10));
    const hits = (tokens: number[]) => {
      const ids = Int32Array.from(tokens);
      const sequence = cache.add(ids, ids.length);
      cache.free(sequence);
      return sequence.numTokens;
    };
    expect(hits(range(0, 8))).toBe(4);
    expect(hits(range(0, 9))).toBe(8);
    expect(hits(range(0, 12))).toBe(8);
    expect(hits([0])).toBe(0);
    expect(hits([])).toBe(0);
    expect(hits([1, ...range(1, 12)])).toBe(0);
  });

  it("does not find across salts, and needs the page before", () => {
    const cache = new KvCache({ numPages: 16, pageSize: 2 });
    addWhole(cache, [1, 2, 3, 4, 5], "alice");
    const hits = (tokens: number[], salt: string) => cache.add(Int32Array.from(tokens), tokens.length, salt).numTokens;
    expect(hits([1, 2, 3, 4, 5], "alice")).toBe(4);
    expect(hits([1, 2, 3, 4, 5], "bob")).toBe(0);
    expect(hits([3, 4, 5], "alice")).toBe(0);
    expect(hits([9, 9, 3, 4, 5], "alice")).toBe(0);
  });

  it("finds only tokens that were committed", () => {
    const cache = new KvCache({ numPages: 8, pageSize: 2 });
    const tokens = Int32Array.from([1, 2, 3, 4, 5]);
    const sequence = cache.create();
    cache.append(sequence, tokens, 0, 5, new Int32Array(5));
    cache.commit(sequence, 3);
    expect(cache.add(tokens, 5).numTokens).toBe(2);
    expect(() => cache.commit(sequence, 6)).toThrow("numComputedTokens = 6 must not exceed the sequence's 5 tokens");
  });

  it.each([
    ["its own hash", undefined],
    ["a hash under which everything collides", () => 7],
  ])("gives the right pages with %s", (_, hash) => {
    const cache = new KvCache({ numPages: 32, pageSize: 2, hash });
    const texts = [
      [1, 2, 3, 4, 5, 6, 0],
      [3, 4, 1, 2, 5, 6, 0],
      [1, 2, 1, 2, 1, 2, 0],
      [5, 6, 3, 4, 5, 6, 0],
    ];
    const sequences = texts.map((text) => addWhole(cache, text));
    for (const [index, text] of texts.entries()) {
      const again = cache.add(Int32Array.from(text), text.length);
      expect(again.table.toArray()).toEqual(sequences[index].table.toArray().slice(0, 3));
    }
  });

  it("does not take a page for the child of what now fills its parent's place", () => {
    const cache = new KvCache({ numPages: 4, pageSize: 2, hash: () => 7 });
    const sequence = addWhole(cache, [1, 2, 3, 4]);
    const other = cache.fork(sequence);
    cache.rollback(sequence, 3);
    cache.free(other);
    append(cache, sequence, [9]);
    expect(sequence.table.toArray()).toEqual([0]);
    expect(cache.pool.isCached(1)).toBe(true);
    expect(cache.add(Int32Array.from([1, 9, 3, 4, 0]), 5).numTokens).toBe(2);
    expect(cache.add(Int32Array.from([1, 2, 3, 4, 0]), 5).numTokens).toBe(0);
  });

  it("copies a shared partial page before the first append to it, and only then", () => {
    const cache = new KvCache({ numPages: 4, pageSize: 4 });
    const parent = addWhole(cache, [1, 2, 3, 4, 5]);
    const child = cache.fork(parent);
    expect(cache.pool.refCount(1)).toBe(2);
    expect(append(cache, child, [60])).toEqual({ from: 1, to: 2 });
    expect(append(cache, child, [70])).toBeUndefined();
    expect(append(cache, parent, [6, 7, 8])).toBeUndefined();
    expect([parent.table.toArray(), child.table.toArray()]).toEqual([
      [0, 1],
      [0, 2],
    ]);
    expect(cache.add(Int32Array.from([1, 2, 3, 4, 5, 6, 7, 8, 9]), 9).table.toArray()).toEqual([0, 1]);
  });

  it("counts the copy when asked whether an append fits, and leaves the sequence alone when it does not", () => {
    const cache = new KvCache({ numPages: 2, pageSize: 4 });
    const parent = addWhole(cache, [1, 2]);
    const child = cache.fork(parent);
    expect(cache.canAppend(child, 2)).toBe(true);
    expect(cache.canAppend(child, 3)).toBe(false);
    expect(cache.canAppend(child, 0)).toBe(true);
    expect(() => append(cache, child, [3, 4, 5])).toThrow("appending 3 tokens takes 2 pages; 1 of 2 are free");
    expect([child.numTokens, child.table.toArray()]).toEqual([2, [0]]);
  });

  it("rolls back through committed pages without harming who shares them", () => {
    const cache = new KvCache({ numPages: 8, pageSize: 4 });
    const sequence = addWhole(cache, range(0, 10));
    const reader = cache.add(Int32Array.from(range(0, 9)), 9);
    cache.rollback(sequence, 4);
    expect(sequence.table.toArray()).toEqual([0, 1]);
    expect(append(cache, sequence, [50])).toEqual({ from: 1, to: 3 });
    expect(reader.table.toArray()).toEqual([0, 1]);

    // Alone with a committed page, the append takes it out of the index and writes in place.
    cache.free(reader);
    const alone = addWhole(cache, range(20, 29));
    const page = alone.table.at(1);
    cache.rollback(alone, 2);
    expect(append(cache, alone, [99])).toBeUndefined();
    expect(alone.table.at(1)).toBe(page);
    expect(cache.add(Int32Array.from(range(20, 29)), 9).numTokens).toBe(4);
    expect(cache.add(Int32Array.from([...range(20, 27), 99, 0]), 9).numTokens).toBe(8);
    expect(() => cache.rollback(alone, 9)).toThrow("numTokens = 9 cannot be rolled back: the sequence has 8");
  });

  it("forgets what can be found, and keeps running sequences sound", () => {
    const cache = new KvCache({ numPages: 8, pageSize: 2 });
    const sequence = addWhole(cache, [1, 2, 3, 4]);
    cache.forget();
    append(cache, sequence, [5, 6, 7]);
    expect(cache.add(Int32Array.from([1, 2, 3, 4, 5, 6, 7]), 7).numTokens).toBe(0);
    cache.free(sequence);
    expect(cache.stats()).toMatchObject({ usedPages: 0, cachedPages: 0, freePages: 8 });
  });

  it("refuses a sequence that was freed", () => {
    const cache = new KvCache({ numPages: 2, pageSize: 2 });
    const sequence = addWhole(cache, [1]);
    cache.free(sequence);
    expect(() => cache.free(sequence)).toThrow("freed");
    expect(() => append(cache, sequence, [1])).toThrow("freed");
    expect(() => cache.fork(sequence)).toThrow("freed");
    expect(() => new KvCache({ numPages: 2, pageSize: 0 })).toThrow("pageSize = 0 must be at least 1");
  });
});
