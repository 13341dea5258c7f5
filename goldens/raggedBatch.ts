/** Builds the batch of one step from what each sequence computes in it: plain and slow, apart from the engine's own. */
import type { RaggedBatch } from "../src/models/runner.ts";

/** The part of a sequence that a step computes. */
export interface Chunk {
  readonly sequence: {
    readonly ids: readonly number[];
    /** The cache pages of its tokens, in order: enough for `end` tokens. */
    readonly pages: readonly number[];
    readonly prompt: { readonly ids: readonly number[] };
  };
  /** Positions first to end - 1. */
  readonly first: number;
  readonly end: number;
}

/** `wanted`: for each chunk the ascending positions whose logits are wanted; their rows come in this order. */
export function raggedBatch(pageSize: number, chunks: readonly Chunk[], wanted: readonly number[][]): RaggedBatch {
  const flat = (ofToken: (chunk: Chunk, position: number) => number): Int32Array =>
    Int32Array.from(
      chunks.flatMap((chunk) => range(chunk.first, chunk.end).map((position) => ofToken(chunk, position))),
    );
  const queryIndptr = new Int32Array(chunks.length + 1);
  for (const [s, { first, end }] of chunks.entries()) queryIndptr[s + 1] = queryIndptr[s] + end - first;
  const maxPages = Math.max(...chunks.map(({ sequence }) => sequence.pages.length));
  const blockTables = new Int32Array(chunks.length * maxPages);
  for (const [s, { sequence }] of chunks.entries()) blockTables.set(sequence.pages, s * maxPages);
  return {
    numTokens: queryIndptr[chunks.length],
    numSeqs: chunks.length,
    tokenIds: flat(({ sequence }, position) => sequence.ids[position]),
    positions: flat((_, position) => position),
    slotMapping: flat(
      ({ sequence }, position) => sequence.pages[Math.floor(position / pageSize)] * pageSize + (position % pageSize),
    ),
    queryIndptr,
    kvLens: Int32Array.from(chunks, ({ end }) => end),
    promptLens: Int32Array.from(chunks, ({ sequence }) => sequence.prompt.ids.length),
    blockTables,
    maxPages,
    logitsRows: Int32Array.from(
      wanted.flatMap((positions, s) => positions.map((position) => queryIndptr[s] + position - chunks[s].first)),
    ),
  };
}

/** The integers from `from` to `to` - 1. */
export const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);
