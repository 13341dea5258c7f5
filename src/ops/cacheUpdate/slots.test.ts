import { describe, expect, it } from "vitest";
import { getBatchIndicesPositions, getSeqLens, slotMappingOf } from "./index.ts";

describe("getBatchIndicesPositions", () => {
  it("gives FlashInfer's example", () => {
    const { batchIndices, positions } = getBatchIndicesPositions([0, 1, 3, 6, 10], [5, 5, 5, 5], 10);
    expect([...batchIndices]).toEqual([0, 1, 1, 2, 2, 2, 3, 3, 3, 3]);
    expect([...positions]).toEqual([4, 3, 4, 2, 3, 4, 1, 2, 3, 4]);
  });
  it("aligns the new tokens to the end of each sequence, and passes over sequences without any", () => {
    const { batchIndices, positions } = getBatchIndicesPositions([0, 0, 2, 2, 3], [7, 2, 0, 100], 3);
    expect([...batchIndices]).toEqual([1, 1, 3]);
    expect([...positions]).toEqual([0, 1, 99]);
  });
  it("marks padding rows with sequence -1", () => {
    const { batchIndices, positions } = getBatchIndicesPositions([0, 2], [9], 5);
    expect([...batchIndices]).toEqual([0, 0, -1, -1, -1]);
    expect([...positions]).toEqual([7, 8, 0, 0, 0]);
  });
  it("names what is wrong", () => {
    expect(() => getBatchIndicesPositions([1, 2], [9], 2)).toThrow("appendIndptr[0] must be 0, got 1");
    expect(() => getBatchIndicesPositions([0, 2, 1], [9, 9], 2)).toThrow("got 2 then 1 for sequence 1");
    expect(() => getBatchIndicesPositions([0, 3], [9], 2)).toThrow("exceed the 2 rows, got 0 then 3 for sequence 0");
    expect(() => getBatchIndicesPositions([0, 3], [2], 3)).toThrow("seqLens[0] = 2 must count the 3 new tokens");
    expect(() => getBatchIndicesPositions([0, 1, 2], [2], 2)).toThrow("an entry for each of 2 sequences, got 1");
    expect(() => getBatchIndicesPositions([0, 1], [Number.NaN], 2)).toThrow("seqLens[0] must be whole numbers");
  });
});

describe("getSeqLens", () => {
  it("counts full pages and the last one", () => {
    expect([...getSeqLens([0, 1, 4, 4, 6], [3, 16, 0, 1], 16)]).toEqual([3, 48, 0, 17]);
    expect([...getSeqLens([0, 5], [1], 1)]).toEqual([5]);
  });
  it("does not take 0 for a full page, nor more than a page holds", () => {
    expect(() => getSeqLens([0, 2], [0], 16)).toThrow(
      "kvLastPageLen[0] must be an integer from 1 to pageSize = 16, got 0",
    );
    expect(() => getSeqLens([0, 1, 2], [1, 17], 16)).toThrow("kvLastPageLen[1]");
    expect(() => getSeqLens([0, 2, 1], [1, 1], 16)).toThrow("kvIndptr must not fall, got 2 then 1 for sequence 1");
  });
});

describe("slotMappingOf", () => {
  it("finds pages and offsets, across a page border and from a page on that has just been added", () => {
    const places = getBatchIndicesPositions([0, 3, 4, 5], [5, 8, 9], 6);
    const slots = slotMappingOf(places, [7, 2, 9, 4, 0, 5, 3], [0, 2, 4, 7], 4);
    expect([...slots]).toEqual([7 * 4 + 2, 7 * 4 + 3, 2 * 4, 4 * 4 + 3, 3 * 4, -1]);
  });
  it("names what is wrong", () => {
    const places = (batchIndices: number[], positions: number[]) => ({
      batchIndices: Int32Array.from(batchIndices),
      positions: Int32Array.from(positions),
    });
    // A sequence whose last page is full needs one more before it is appended to.
    expect(() => slotMappingOf(places([0], [8]), [1, 2], [0, 2], 4)).toThrow(
      "positions[0] = 8 is not in the 2 pages of 4 tokens of sequence 0",
    );
    expect(() => slotMappingOf(places([0, 1], [1, 1]), [1, 1], [0, 1, 2], 4)).toThrow(
      "tokens 0 and 1 both write slot 5: sequences 0 and 1 share its page",
    );
    expect(() => slotMappingOf(places([2], [0]), [1, 2], [0, 1, 2], 4)).toThrow(
      "batchIndices[0] = 2 is not a sequence",
    );
    expect(() => slotMappingOf(places([0], [5]), [1], [0, 2], 4)).toThrow("kvIndices[1] = undefined must be a page");
    expect(() => slotMappingOf(places([0], [1]), [-1], [0, 1], 4)).toThrow("kvIndices[0] = -1 must be a page");
  });
});
