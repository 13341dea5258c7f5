import { describe, expect, it } from "vitest";
import { validateAttentionBatch } from "../ops/attention/index.ts";
import { batchOf } from "./sequences.ts";

describe("batchOf", () => {
  it("lists pages one sequence after the other", () => {
    const batch = batchOf(
      [
        { queryLen: 3, kvLen: 3, pages: [2] },
        { queryLen: 0, kvLen: 0, pages: [] },
        { queryLen: 1, kvLen: 20, pages: [0, 3] },
      ],
      4,
    );
    expect(batch).toEqual({
      numRows: 4,
      numSeqs: 3,
      queryIndptr: Int32Array.of(0, 3, 3, 4),
      kvLens: Int32Array.of(3, 0, 20),
      blockTables: Int32Array.of(2, 0, 3),
      pageIndptr: Int32Array.of(0, 1, 1, 3),
      maxPages: 0,
      numPages: 4,
    });
    validateAttentionBatch({ pageSize: 16 }, batch);
  });

  it("has the first rows of contiguous keys", () => {
    const batch = batchOf(
      [
        { queryLen: 1, kvLen: 5 },
        { queryLen: 2, kvLen: 4, firstRow: 5 },
      ],
      9,
    );
    expect([...batch.blockTables]).toEqual([0, 5]);
    validateAttentionBatch({}, batch);
  });

  it("is valid without sequences", () => {
    validateAttentionBatch({ pageSize: 16 }, batchOf([], 0));
  });

  it("names the sequence that does not fit", () => {
    expect(() => batchOf([{ queryLen: -1, kvLen: 5 }], 9)).toThrow("sequences[0].queryLen must be an integer of at");
    const paged = { queryLen: 1, kvLen: 5, pages: [0] };
    expect(() => batchOf([paged, { queryLen: 1, kvLen: 5 }], 9)).toThrow(
      "sequences[1] must have pages and no firstRow, as sequences[0] has",
    );
    expect(() => batchOf([{ ...paged, firstRow: 1 }], 9)).toThrow("sequences[0] must have pages and no firstRow");
    expect(() => batchOf([{ queryLen: 1, kvLen: 5 }, paged], 9)).toThrow("sequences[1] must have no pages");
    expect(() => batchOf([{ ...paged, pages: [0, 1.5] }], 9)).toThrow("sequences[0].pages[1] must be an integer of at");
    expect(() => batchOf([{ queryLen: 1, kvLen: 5, firstRow: 0.5 }], 9)).toThrow(
      "sequences[0].firstRow must be an int",
    );
  });
});
