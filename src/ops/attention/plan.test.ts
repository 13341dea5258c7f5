import { describe, expect, it } from "vitest";
import { defaultSpec, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { AttentionPlan, itemWords } from "./plan.ts";

function itemsOf(plan: AttentionPlan): number[][] {
  return Array.from({ length: plan.numItems }, (_, i) => [...plan.items.subarray(i * itemWords, i * itemWords + 7)]);
}

describe("the plan", () => {
  const spec = defaultSpec({ splitSize: 64 }); // groups of 2 query heads: tiles of 16 tokens

  it("cuts queries into tiles, the last ones first, and covers padding rows", () => {
    const plan = new AttentionPlan(spec, 1);
    plan.update(
      raggedCase(
        spec,
        [
          { queryLen: 20, kvLen: 50 },
          { queryLen: 1, kvLen: 60 },
        ],
        1,
        18,
      ).batch,
    );
    expect(itemsOf(plan)).toEqual([
      [16, 4, 0, 46, 0, 50, -1],
      [0, 16, 0, 30, 0, 46, -1],
      [20, 1, 1, 59, 0, 60, -1],
      [21, 16, 0, 0, 0, 0, -1],
      [37, 2, 0, 0, 0, 0, -1],
    ]);
    expect(plan.numMerges).toBe(0);
  });

  it("splits a tile that is much of the step into chunks at absolute positions", () => {
    const plan = new AttentionPlan(spec, 4);
    plan.update(raggedCase(spec, [{ queryLen: 2, kvLen: 150 }]).batch);
    expect(itemsOf(plan)).toEqual([
      [0, 2, 0, 148, 0, 64, 0],
      [0, 2, 0, 148, 64, 128, 8],
      [0, 2, 0, 148, 128, 150, 16],
    ]);
    expect([...plan.merges]).toEqual([0, 2, 0, 3]);
    expect(plan.numPartialRows).toBe(24);
  });

  it("starts a window at the block of the first row's first key", () => {
    const windowed = defaultSpec({ slidingWindow: 50, splitSize: 64 });
    const plan = new AttentionPlan(windowed, 1);
    plan.update(raggedCase(windowed, [{ queryLen: 2, kvLen: 150 }]).batch);
    expect(itemsOf(plan)).toEqual([[0, 2, 0, 148, 96, 150, -1]]);
  });

  it("keeps its arrays from step to step", () => {
    const plan = new AttentionPlan(spec, 1);
    const { batch } = raggedCase(spec, [{ queryLen: 2000, kvLen: 2000 }]);
    plan.update(batch);
    const { buffer } = plan.items;
    plan.update(raggedCase(spec, [{ queryLen: 1, kvLen: 3 }]).batch);
    expect(plan.numItems).toBe(1);
    plan.update(batch);
    expect(plan.items.buffer).toBe(buffer);
  });

  it("says that it has no batch yet", () => {
    expect(() => new AttentionPlan(spec).batch).toThrow("AttentionPlan.update was never called");
  });
});
