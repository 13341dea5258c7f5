import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { makeMlaCase } from "../../../test/fixtures/attention/mlaCase.ts";
import { validateAttentionBatch } from "../../ops/attention/index.ts";
import { cutIntoParts, type RebuiltPart } from "./rebuiltParts.ts";

const dims = { numHeads: 1, kvLoraRank: 1, qkRopeHeadDim: 0, qkNopeHeadDim: 1, vHeadDim: 1 };

describe("parts of rebuilt prefill", () => {
  it("cut a long context at multiples of the workspace, and put what fits into one part", () => {
    const { batch } = makeMlaCase({
      ...dims,
      pageSize: 4,
      lengths: [
        [2, 3],
        [1, 12],
        [3, 3],
        [1, 8],
      ],
    });
    const { own, context } = cutIntoParts(batch, 4, 8);
    expect(own.map(({ numTokens, firstRow, batch: part }) => [numTokens, firstRow, part.numRows])).toEqual([[7, 0, 7]]);
    // 1 token of the first sequence; 8 of the second; the 3 others of the second; the third has no context; 7 of the fourth.
    expect(context.map(({ batch: part }) => [...part.kvLens])).toEqual([[1], [8], [3], [7]]);
    expect(context.map(({ firstRow, batch: part }) => [firstRow, part.numRows])).toEqual([
      [0, 2],
      [2, 1],
      [2, 1],
      [6, 1],
    ]);
    const roomier = cutIntoParts(batch, 4, 11).context;
    expect(roomier.map(({ batch: part }) => [...part.kvLens])).toEqual([[1], [11], [7]]);
    expect(cutIntoParts(batch, 4, 18).context.map(({ batch: part }) => [...part.kvLens])).toEqual([[1, 11], [7]]);
  });

  it("keep the new tokens of one sequence together, and others apart where they do not fit", () => {
    const { batch } = makeMlaCase({
      ...dims,
      pageSize: 4,
      lengths: [
        [20, 20],
        [1, 1],
        [7, 7],
        [4, 4],
      ],
      paddingRows: 2,
    });
    const { own, maxTokens } = cutIntoParts(batch, 4, 8);
    expect(own.map(({ numTokens, batch: part }) => [numTokens, part.numRows])).toEqual([
      [20, 20],
      [8, 8],
      [4, 6],
    ]);
    expect(maxTokens).toBe(20);
  });

  it("are one of no tokens for a batch without sequences", () => {
    const { batch } = makeMlaCase({ ...dims, pageSize: 4, lengths: [], paddingRows: 3 });
    const { own, context } = cutIntoParts(batch, 4, 8);
    expect(own.map(({ numTokens, batch: part }) => [numTokens, part.numRows, part.numSeqs])).toEqual([[0, 3, 0]]);
    expect(context).toEqual([]);
  });

  it("cut a sequence alike whatever is in the batch beside it", () => {
    const length = fc.tuple(fc.integer({ min: 1, max: 9 }), fc.nat(60));
    fc.assert(
      fc.property(
        fc.array(length, { minLength: 1, maxLength: 5 }),
        fc.integer({ min: 1, max: 20 }),
        (given, workspace) => {
          const lengths = given.map(([queryLen, contextLen]) => [queryLen, queryLen + contextLen] as const);
          const cuts = (sequences: typeof lengths, which: number): number[] => {
            const { batch } = makeMlaCase({ ...dims, pageSize: 4, lengths: sequences });
            const row = batch.queryIndptr[which];
            return cutIntoParts(batch, 4, workspace).context.flatMap(({ firstRow, batch: part }) => {
              const at = part.queryIndptr.subarray(0, part.numSeqs).indexOf(row - firstRow);
              return at >= 0 && part.kvLens[at] > 0 ? [part.kvLens[at]] : [];
            });
          };
          for (const [s, sequence] of lengths.entries()) expect(cuts(lengths, s)).toEqual(cuts([sequence], 0));
        },
      ),
    );
  });

  it("have every row once, and every token of every sequence with queries once, in order, within the workspace", () => {
    const length = fc
      .tuple(fc.nat(9), fc.nat(30))
      .map(([queryLen, contextLen]) => [queryLen, queryLen + contextLen] as const);
    fc.assert(
      fc.property(
        fc.array(length, { maxLength: 6 }),
        fc.integer({ min: 1, max: 40 }),
        fc.nat(3),
        (lengths, workspace, paddingRows) => {
          const made = makeMlaCase({ ...dims, pageSize: 4, lengths, paddingRows });
          const parts = cutIntoParts(made.batch, 4, workspace);
          const rows = parts.own.flatMap(({ firstRow, batch }) =>
            Array.from({ length: batch.numRows }, (_, i) => firstRow + i),
          );
          expect(rows).toEqual(Array.from({ length: made.batch.numRows }, (_, row) => row));
          const seen = lengths.map((): number[] => []);
          for (const kind of ["context", "own"] as const) {
            for (const part of parts[kind]) {
              validateAttentionBatch({}, part.batch);
              const longest = Math.max(0, ...lengths.map(([queryLen]) => queryLen));
              expect(part.numTokens).toBeLessThanOrEqual(kind === "own" ? Math.max(workspace, longest) : workspace);
              collect(part, parts, made.batch.queryIndptr, seen);
            }
          }
          for (const [s, [queryLen, kvLen]] of lengths.entries()) {
            const expected = made.slotsOf(s);
            if (queryLen > 0) expect(seen[s]).toEqual(expected);
            else expect(seen[s]).toEqual([]);
            expect(expected.length).toBe(kvLen);
          }
        },
      ),
      { numRuns: 200 },
    );
  });
});

/** Appends the slots that a part has of each sequence. Sequences without rows begin where their successor does: told apart by order. */
function collect(part: RebuiltPart, { slots }: { slots: Int32Array }, queryIndptr: Int32Array, seen: number[][]): void {
  for (let s = 0; s < part.batch.numSeqs; s++) {
    const first = part.batch.blockTables[s];
    if (part.batch.kvLens[s] === 0) continue;
    const row = part.firstRow + part.batch.queryIndptr[s];
    const sequence = seen.findIndex((_, i) => queryIndptr[i] === row && queryIndptr[i + 1] > row);
    seen[sequence].push(...slots.subarray(part.firstToken + first, part.firstToken + first + part.batch.kvLens[s]));
  }
}
