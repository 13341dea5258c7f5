import { describe, expect, it } from "vitest";
import { defaultSpec } from "../../../test/fixtures/attention/ragged.ts";
import { type AttentionBatch, validateAttentionBatch } from "./batch.ts";
import { type AttentionSpec, type KeyRopeSpec, validateAttentionSpec } from "./contract.ts";

describe("the spec", () => {
  it.each<[Partial<AttentionSpec>, string]>([
    [{ headDim: 1028 }, "headDim must be an integer from 1 to 1024, got 1028"],
    [{ numQHeads: 5 }, "numQHeads must be a multiple of numKvHeads = 2, got 5"],
    [{ numKvHeads: 0 }, "numKvHeads must be an integer of at least 1, got 0"],
    [{ pageSize: 0 }, "pageSize must be an integer of at least 1, got 0"],
    [{ slidingWindow: 0 }, "slidingWindow must be an integer of at least 1, got 0"],
    [{ slidingWindow: -1 }, "slidingWindow must be an integer of at least 1, got -1"],
    [{ slidingWindow: 4, causal: false }, "slidingWindow = 4 needs causal = true"],
    [{ softCap: 0 }, "softCap must be a positive number or absent, got 0"],
    [{ smScale: Number.NaN }, "smScale must be a finite number, got NaN"],
    [{ splitSize: 100 }, "splitSize must be a multiple of 32, got 100"],
  ])("refuses %j", (changes, message) => {
    expect(() => validateAttentionSpec({ ...defaultSpec(), ...changes })).toThrow(message);
  });

  it("refuses a rotation of the latents of mla, which are the values too", () => {
    const validate = (rope: Omit<KeyRopeSpec, "style">): void =>
      validateAttentionSpec({
        ...defaultSpec(),
        ...{ headDim: 40, headDimV: 32, numKvHeads: 1, mla: { ropeDim: 8 }, rope: { style: "halves", ...rope } },
      });
    const refusal = (offset: number): string =>
      `rope.offset must be at least headDimV = 32 with mla, got ${offset}: the channels before it are the values`;
    expect(() => validate({ dim: 8 })).toThrow(refusal(0));
    expect(() => validate({ dim: 8, offset: 31 })).toThrow(refusal(31));
    expect(() => validate({ dim: 8, offset: 32 })).not.toThrow();
    expect(() => validate({ dim: 4, offset: 36 })).not.toThrow();
  });
});

describe("the batch", () => {
  const good: AttentionBatch = {
    numRows: 4,
    numSeqs: 2,
    queryIndptr: Int32Array.of(0, 3, 4, -1),
    kvLens: Int32Array.of(5, 9),
    blockTables: Int32Array.of(2, 0, 2147480000, 1, 3, 4),
    maxPages: 3,
    numPages: 5,
  };

  it("may carry garbage behind what belongs to its sequences", () => {
    expect(() => validateAttentionBatch({ pageSize: 4 }, good)).not.toThrow();
  });

  it.each<[Partial<AttentionBatch>, string]>([
    [{ queryIndptr: Int32Array.of(0, 3) }, "queryIndptr must have at least numSeqs + 1 = 3 entries, got 2"],
    [{ queryIndptr: Int32Array.of(1, 3, 4) }, "queryIndptr[0] must be 0, got 1"],
    [{ queryIndptr: Int32Array.of(0, 3, 2) }, "queryIndptr must not fall, got 3 then 2 for sequence 1"],
    [{ queryIndptr: Int32Array.of(0, 3, 5) }, "queryIndptr[numSeqs] = 5 must not exceed numRows = 4"],
    [{ kvLens: Int32Array.of(5) }, "kvLens must have at least numSeqs = 2 entries, got 1"],
    [{ kvLens: Int32Array.of(2, 9) }, "sequence 0 has 3 queries but kvLens[0] = 2: kvLens counts the query tokens"],
    [{ kvLens: Int32Array.of(5, -1), allowUnseeing: true }, "kvLens[1] must not be negative, got -1"],
    [{ kvLens: Int32Array.of(5, 13) }, "kvLens[1] = 13 needs 4 pages of 4 tokens, but blockTables has 3 a sequence"],
    [{ kvLens: Int32Array.of(9, 9) }, "blockTables[0][2] = 2147480000 is not a page: the pool has 5"],
    [{ numPages: 4 }, "blockTables[1][2] = 4 is not a page: the pool has 4"],
    [{ blockTables: Int32Array.of(2, 0) }, "blockTables must have at least [2, 3] entries, got 2"],
    [{ numSeqs: -1 }, "numSeqs must be an integer of at least 0, got -1"],
  ])("refuses %j", (changes, message) => {
    expect(() => validateAttentionBatch({ pageSize: 4 }, { ...good, ...changes })).toThrow(message);
  });
});
