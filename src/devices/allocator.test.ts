import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ALIGNMENT, Allocator, type DeviceBuffer } from "./allocator.ts";

const BEGIN = 4096;
const END = BEGIN + 100 * ALIGNMENT;

const reserved = (numBytes: number) => Math.max(1, Math.ceil(numBytes / ALIGNMENT)) * ALIGNMENT;

/** The largest gap between the given buffers, by brute force over all units. */
function largestGap(buffers: readonly DeviceBuffer[]): number {
  let largest = 0;
  let gap = 0;
  for (let unit = BEGIN; unit < END; unit += ALIGNMENT) {
    const isUsed = buffers.some((b) => unit >= b.pointer && unit < b.pointer + reserved(b.numBytes));
    gap = isUsed ? 0 : gap + ALIGNMENT;
    largest = Math.max(largest, gap);
  }
  return largest;
}

describe("Allocator", () => {
  it("never overlaps buffers, refuses only what does not fit, and merges what is freed", () => {
    const allocation = fc.record({ kind: fc.constant("allocate" as const), numBytes: fc.nat(30 * ALIGNMENT) });
    const freeing = fc.record({ kind: fc.constant("free" as const), which: fc.nat() });
    fc.assert(
      fc.property(fc.array(fc.oneof(allocation, freeing), { maxLength: 120 }), (steps) => {
        const allocator = new Allocator(BEGIN, END);
        const live: DeviceBuffer[] = [];
        let highWater = 0;
        for (const step of steps) {
          if (step.kind === "free") {
            if (live.length === 0) continue;
            const [buffer] = live.splice(step.which % live.length, 1);
            allocator.free(buffer);
            expect(() => allocator.free(buffer)).toThrow("is not allocated");
          } else if (largestGap(live) >= reserved(step.numBytes)) {
            live.push(allocator.allocate(step.numBytes, "x"));
          } else {
            expect(() => allocator.allocate(step.numBytes, "x")).toThrow("no room");
          }
          const sorted = [...live].sort((a, b) => a.pointer - b.pointer);
          let end = BEGIN;
          for (const buffer of sorted) {
            expect(buffer.pointer % ALIGNMENT).toBe(0);
            expect(buffer.pointer).toBeGreaterThanOrEqual(end);
            end = buffer.pointer + reserved(buffer.numBytes);
          }
          expect(end).toBeLessThanOrEqual(END);
          const used = live.reduce((sum, buffer) => sum + reserved(buffer.numBytes), 0);
          highWater = Math.max(highWater, used);
          expect(allocator.stats()).toEqual({ numBuffers: live.length, usedBytes: used, highWaterBytes: highWater });
        }
        for (const buffer of live) allocator.free(buffer);
        expect(allocator.allocate(END - BEGIN, "all").pointer).toBe(BEGIN);
      }),
      { numRuns: 200 },
    );
  });

  it("takes the tightest range that fits", () => {
    const allocator = new Allocator(BEGIN, END);
    const [wide, , narrow] = [10, 1, 2, 1].map((units) => allocator.allocate(units * ALIGNMENT, "x"));
    allocator.free(wide);
    allocator.free(narrow);
    expect(allocator.allocate(2 * ALIGNMENT, "y").pointer).toBe(narrow.pointer);
  });

  it("says what uses the memory when there is no room", () => {
    const allocator = new Allocator(BEGIN, BEGIN + 100 * 2 ** 20);
    allocator.allocate(60 * 2 ** 20, "weights");
    for (let layer = 0; layer < 3; layer++) allocator.allocate(10 * 2 ** 20, `k pages layer ${layer}`);
    expect(() => allocator.allocate(20 * 2 ** 20, "logits")).toThrow(
      'no room for 20.0 MiB ("logits"): 90.0 MiB of 100.0 MiB are in use (weights 60.0 MiB, k pages layer * 30.0 MiB), ' +
        "the largest free range is 10.0 MiB.",
    );
  });

  it.each([-1, 1.5, Number.NaN, Infinity])("refuses %d bytes", (numBytes) => {
    expect(() => new Allocator(BEGIN, END).allocate(numBytes, "x")).toThrow('numBytes of "x" must be a whole number');
  });

  it("refuses a buffer of another allocator", () => {
    const buffer = new Allocator(BEGIN, END).allocate(64, "stranger");
    const allocator = new Allocator(BEGIN, END);
    allocator.allocate(64, "own");
    expect(() => allocator.free(buffer)).toThrow('"stranger"');
  });
});
