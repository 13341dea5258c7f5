import { describe, expect, it } from "vitest";
import { PagePool } from "./pagePool.ts";

describe("PagePool", () => {
  it("allocates what was free the longest, and says undefined when nothing is", () => {
    const pool = new PagePool(3);
    expect([pool.allocate(), pool.allocate(), pool.allocate(), pool.allocate()]).toEqual([0, 1, 2, undefined]);
    pool.release(1);
    pool.release(0);
    expect([...pool.freePages()]).toEqual([1, 0]);
    expect([pool.allocate(), pool.allocate()]).toEqual([1, 0]);
  });

  it("unlinks a hit page from the middle of the free list", () => {
    const pool = new PagePool(4);
    for (let page = 0; page < 4; page++) pool.allocate();
    pool.setCached(2, true);
    for (const page of [3, 2, 1, 0]) pool.release(page);
    expect(pool.numFreeCached).toBe(1);
    pool.hit(2);
    expect([...pool.freePages()]).toEqual([3, 1, 0]);
    expect([pool.numFree, pool.numFreeCached, pool.refCount(2)]).toEqual([3, 0, 1]);
  });

  it("tells its listener of every change where it happens", () => {
    const events: string[] = [];
    const note = (event: string) => (page: number) => void events.push(`${event} ${page}`);
    const pool = new PagePool(1, {
      onAllocate: note("allocate"),
      onEvict: note("evict"),
      onHit: note("hit"),
      onFree: note("free"),
    });
    pool.allocate();
    pool.setCached(0, true);
    pool.share(0);
    pool.release(0);
    pool.release(0);
    pool.hit(0);
    pool.release(0);
    pool.allocate();
    expect(events).toEqual(["allocate 0", "free 0", "hit 0", "free 0", "evict 0", "allocate 0"]);
    expect(pool.isCached(0)).toBe(false);
  });

  it("refuses what would corrupt it", () => {
    const pool = new PagePool(2);
    expect(() => pool.release(0)).toThrow("page 0 is not held");
    expect(() => pool.share(1)).toThrow("page 1 is not held");
    expect(() => pool.hit(1)).toThrow("page 1 is not cached");
    expect(() => pool.release(7)).toThrow("page 7 is not held");
    expect(() => new PagePool(0)).toThrow("numPages = 0 must be at least 1");
  });
});
