/** Runs given sequences through a model in a given order of chunks, and collects every token's logits. For tests. */

import { type Chunk, raggedBatch, range } from "../../goldens/raggedBatch.ts";
import type { LoadedModel } from "../../src/models/loadModel.ts";
import type { ModelRunner } from "../../src/models/runner.ts";
import { uniform } from "../matmul/weights.ts";

/** Logits of each sequence's tokens: [sequence][position]. */
export type Logits = readonly (readonly Float32Array[])[];

export interface Schedule {
  /** Most tokens of a sequence in one step. */
  readonly longestChunk: number;
  readonly seed: number;
}

/** Reproducible token ids. */
export function randomIds(length: number, vocabSize: number, seed: number): number[] {
  const random = uniform(seed);
  return Array.from({ length }, () => Math.floor(random() * vocabSize));
}

/** Each sequence by itself, whole, on the pages from 0 on. */
export async function runAlone({ runner }: LoadedModel, sequences: readonly (readonly number[])[]): Promise<Logits> {
  const logits: Float32Array[][] = [];
  for (const ids of sequences) {
    const pages = range(0, Math.ceil(ids.length / runner.pageSize));
    logits.push(
      ...(await runChunks(runner, [{ sequence: { ids, pages, prompt: { ids } }, first: 0, end: ids.length }])),
    );
  }
  return logits;
}

/**
 * All sequences at once: every step takes a random number of tokens, perhaps none, of each, in a random order, and every page is drawn at
 * random from those that are free.
 */
export async function runScheduled(
  { runner }: LoadedModel,
  sequences: readonly (readonly number[])[],
  { longestChunk, seed }: Schedule,
): Promise<Logits> {
  const random = uniform(seed);
  const draw = (below: number): number => Math.floor(random() * below);
  const freePages = range(0, runner.numPages);
  const states = sequences.map((ids) => ({ ids, pages: [] as number[], prompt: { ids }, numComputed: 0 }));
  const logits: Float32Array[][] = sequences.map(() => []);
  while (states.some(({ ids, numComputed }) => numComputed < ids.length)) {
    const order = range(0, states.length);
    for (let i = order.length - 1; i > 0; i--) {
      const j = draw(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    const taken = order.flatMap((index) => {
      const state = states[index];
      const first = state.numComputed;
      const end = Math.min(first + draw(longestChunk + 1), state.ids.length);
      if (end === first) return [];
      while (state.pages.length * runner.pageSize < end)
        state.pages.push(...freePages.splice(draw(freePages.length), 1));
      state.numComputed = end;
      return [{ index, sequence: state, first, end }];
    });
    if (taken.length === 0) continue;
    const rows = await runChunks(runner, taken);
    for (const [i, { index }] of taken.entries()) logits[index].push(...rows[i]);
  }
  return logits;
}

/** One step; all logits of each chunk. */
export async function runChunks(runner: ModelRunner, chunks: readonly Chunk[]): Promise<Float32Array[][]> {
  const wanted = chunks.map(({ first, end }) => range(first, end));
  const output = await runner.execute(raggedBatch(runner.pageSize, chunks, wanted));
  let row = 0;
  return wanted.map((positions) => positions.map(() => output.row(row++).slice()));
}

/** The first place where two runs have other bits, in words; undefined where they are the same. */
export function firstDifference(got: Logits, want: Logits): string | undefined {
  for (const [s, rows] of want.entries()) {
    if (got[s].length !== rows.length) return `sequence ${s} has ${got[s].length} rows, expected ${rows.length}`;
    for (const [position, row] of rows.entries()) {
      const [a, b] = [got[s][position], row].map((one) => new Int32Array(one.buffer, one.byteOffset, one.length));
      const at = a.findIndex((word, i) => word !== b[i]);
      if (at >= 0)
        return `sequence ${s}, position ${position}, token ${at}: ${got[s][position][at]}, expected ${row[at]}`;
    }
  }
  return undefined;
}
