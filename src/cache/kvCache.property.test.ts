/**
 * Drives the cache by random steps beside a plain model: a list of token lists, and a "device" that does nothing but what a device does,
 * copy pages and store tokens by slot. Whatever the cache promises is then read off both.
 */

import fc from "fast-check";
import { expect, it } from "vitest";
import type { CacheSequence } from "./cacheSequence.ts";
import { KvCache } from "./kvCache.ts";

const verbs = ["add", "add", "append", "append", "fork", "rollback", "abort", "finish", "forget"] as const;
type Verb = (typeof verbs)[number];

interface Step {
  readonly verb: Verb;
  readonly which: number;
  readonly length: number;
  readonly tokens: readonly number[];
  readonly salt: string;
}

interface Twin {
  readonly sequence: CacheSequence;
  tokens: number[];
  table: number[];
}

const steps = (count: number) =>
  fc.array(
    fc.record<Step>({
      verb: fc.constantFrom(...verbs),
      which: fc.nat(1000),
      length: fc.nat(14),
      // Mostly one letter, so that prefixes meet.
      tokens: fc.array(fc.constantFrom(0, 0, 0, 0, 0, 0, 0, 1), { minLength: 14, maxLength: 14 }),
      salt: fc.constantFrom("", "", "", "other"),
    }),
    { minLength: count, maxLength: count },
  );

class Model {
  readonly cache: KvCache;
  readonly twins: Twin[] = [];
  /** The device's memory: a token by slot. */
  readonly device: Int32Array;
  evictions = 0;
  allocated = 0;

  constructor(numPages: number, pageSize: number, isHashPoor: boolean) {
    this.device = new Int32Array(numPages * pageSize).fill(-1);
    this.cache = new KvCache({
      numPages,
      pageSize,
      hash: isHashPoor ? (seed, tokens, begin) => (seed + tokens[begin]) & 1 : undefined,
      listener: {
        onAllocate: (page) => {
          this.allocated++;
          // What a new holder finds in a page must never matter.
          this.device.fill(-1, page * pageSize, (page + 1) * pageSize);
        },
        onEvict: () => this.evictions++,
      },
    });
  }

  run({ verb, which, length, tokens, salt }: Step): void {
    const { cache, twins } = this;
    const index = twins.length === 0 ? 0 : which % twins.length;
    const twin: Twin | undefined = twins[index];
    if (verb === "add") {
      const ids = Int32Array.from(tokens.slice(0, length));
      if (cache.canAdd(ids, length, salt)) this.add(ids, salt);
      else if (twin !== undefined) this.remove(index);
    } else if (verb === "forget") {
      // Rare, or nothing would ever be found.
      if (which % 10 === 0) cache.forget();
    } else if (twin === undefined) {
      return;
    } else if (verb === "append") {
      if (cache.canAppend(twin.sequence, length)) this.append(twin, tokens.slice(0, length));
      else expect(() => this.append(twin, tokens.slice(0, length))).toThrow("free");
    } else if (verb === "fork" && twins.length < 8) {
      twins.push({ sequence: cache.fork(twin.sequence), tokens: [...twin.tokens], table: [...twin.table] });
    } else if (verb === "rollback") {
      const count = Math.min(length, twin.tokens.length);
      cache.rollback(twin.sequence, count);
      twin.tokens.splice(twin.tokens.length - count);
      twin.table = twin.table.slice(0, Math.ceil(twin.tokens.length / cache.pageSize));
    } else {
      this.remove(index);
    }
  }

  add(ids: Int32Array, salt: string): void {
    const { cache, twins } = this;
    const sequence = cache.add(ids, ids.length, salt);
    const numHit = sequence.numTokens;
    expect(numHit % cache.pageSize).toBe(0);
    expect(numHit).toBeLessThan(Math.max(1, ids.length));
    // Whatever a living sequence of the same salt has committed must be found.
    for (const twin of twins) {
      if (twin.sequence.salt !== salt) continue;
      let common = 0;
      while (common < Math.min(twin.sequence.numCommittedTokens, ids.length - 1) && twin.tokens[common] === ids[common])
        common++;
      if (!this.isForgotten(twin)) expect(numHit).toBeGreaterThanOrEqual(common - (common % cache.pageSize));
    }
    const twin = { sequence, tokens: Array.from(ids.subarray(0, numHit)), table: sequence.table.toArray() };
    twins.push(twin);
    this.append(twin, Array.from(ids.subarray(numHit)));
  }

  isForgotten(twin: Twin): boolean {
    return twin.table
      .slice(0, twin.sequence.numCommittedTokens / this.cache.pageSize)
      .some((page) => !this.cache.pool.isCached(page));
  }

  append(twin: Twin, tokens: readonly number[]): void {
    const { cache, device } = this;
    const { sequence } = twin;
    const slots = new Int32Array(tokens.length);
    const copy = cache.append(sequence, Int32Array.from(tokens), 0, tokens.length, slots);
    if (copy !== undefined) {
      const from = copy.from * cache.pageSize;
      device.copyWithin(copy.to * cache.pageSize, from, from + cache.pageSize);
      expect(twin.table.at(-1)).toBe(copy.from);
      twin.table[twin.table.length - 1] = copy.to;
    }
    slots.forEach((slot, index) => {
      device[slot] = tokens[index];
    });
    twin.tokens.push(...tokens);
    expect(sequence.table.toArray().slice(0, twin.table.length)).toEqual(twin.table);
    twin.table = sequence.table.toArray();
    // Every third token stays uncommitted a while, as tokens do that may yet be rejected.
    cache.commit(sequence, sequence.numTokens - (sequence.numTokens % 3 === 0 ? Math.min(1, sequence.numTokens) : 0));
  }

  remove(index: number): void {
    this.cache.free(this.twins[index].sequence);
    this.twins.splice(index, 1);
  }

  check(): void {
    const { pool, pageSize } = this.cache;
    const holders = new Array<number>(pool.numPages).fill(0);
    for (const { sequence, tokens, table } of this.twins) {
      const held = tokens.map((_, at) => this.device[table[Math.floor(at / pageSize)] * pageSize + (at % pageSize)]);
      // As text, because this runs 100,000 times and deep equality is slow.
      expect(`${sequence.numTokens}: ${held} in ${sequence.table.toArray()}`).toBe(
        `${tokens.length}: ${tokens} in ${table}`,
      );
      expect(table.length).toBe(Math.ceil(tokens.length / pageSize));
      expect(sequence.numCommittedTokens).toBeLessThanOrEqual(tokens.length);
      for (const page of table) holders[page]++;
    }
    const free = [...pool.freePages()];
    const unheld = holders.flatMap((count, page) => (count === 0 ? [page] : []));
    expect(`${[...free].sort((a, b) => a - b)}`).toBe(`${unheld}`);
    expect(pool.numFree).toBe(free.length);
    expect(`${holders.map((_, page) => pool.refCount(page))}`).toBe(`${holders}`);
    const stats = this.cache.stats();
    expect(stats.cachedPages).toBe(free.filter((page) => pool.isCached(page)).length);
    expect(stats.usedPages + stats.cachedPages + stats.freePages).toBe(pool.numPages);
    expect(stats.evictions).toBe(this.evictions);
  }
}

it("loses no page, frees none twice and keeps every token in its place over 10,000 random steps", {
  timeout: 60_000,
}, () => {
  const totals = { steps: 0, evictions: 0, hitTokens: 0, copies: 0 };
  fc.assert(
    fc.property(
      fc.integer({ min: 4, max: 24 }),
      fc.integer({ min: 1, max: 5 }),
      fc.boolean(),
      steps(200),
      (numPages, pageSize, isHashPoor, run) => {
        const model = new Model(numPages, pageSize, isHashPoor);
        for (const step of run) {
          model.run(step);
          model.check();
          totals.steps++;
        }
        const { evictions, hitTokens, copies } = model.cache.stats();
        totals.evictions += evictions;
        totals.hitTokens += hitTokens;
        totals.copies += copies;
        while (model.twins.length > 0) model.remove(0);
        model.check();
        expect(model.cache.pool.numFree).toBe(numPages);
      },
    ),
    { numRuns: 50, seed: 2024, endOnFailure: true },
  );
  // The walk is worth nothing if it does not go where the difficulties are.
  expect(totals.steps).toBeGreaterThanOrEqual(10_000);
  expect(totals.evictions).toBeGreaterThan(500);
  expect(totals.hitTokens).toBeGreaterThan(1000);
  expect(totals.copies).toBeGreaterThan(50);
});
