/**
 * Runs token ids through a model: one prompt after another, or all of them in one ragged batch, their prefill cut into uneven chunks beside
 * the others' decode steps and their pages scattered. What the logits should be is judged elsewhere (judgement.ts, models.ts).
 */
import type { ModelRunner } from "../src/models/runner.ts";
import { raggedBatch, range } from "./raggedBatch.ts";

export interface Prompt {
  readonly name: string;
  readonly ids: readonly number[];
  /** Tokens to append greedily. */
  readonly numGreedy: number;
  /** First position whose row of logits is kept; those of the last prompt token and of all greedy tokens but the last are kept always. */
  readonly firstKept: number;
}

export interface Answer {
  /** Rows of logits by position: row p predicts token p + 1. */
  readonly rows: ReadonlyMap<number, Float32Array>;
  /** log p(ids[t + 1] | ids[..t]) over the prompt; only where all rows were computed. */
  readonly logprobs: number[];
  /** The tokens appended, each the first of the largest logits. */
  readonly greedy: number[];
}

interface Sequence {
  readonly prompt: Prompt;
  readonly ids: number[];
  readonly pages: number[];
  readonly rows: Map<number, Float32Array>;
  readonly logprobs: number[];
  numComputed: number;
}

/** Most tokens of one step. */
export const maxStepTokens = 128;

/** Chunk lengths of a prefill in company, taken in turn: none divides a page or the one before it. */
const chunkLengths = [5, 1, 17, 3, 29, 11];

/** Runs each prompt by itself, on consecutive pages, and scores every prompt token. Pages of earlier prompts are used again. */
export async function runAlone(runner: ModelRunner, prompts: readonly Prompt[]): Promise<Answer[]> {
  const answers: Answer[] = [];
  for (const prompt of prompts) {
    const sequence = begin(prompt);
    let nextPage = 0;
    while (!isDone(sequence)) await step(runner, [[sequence, maxStepTokens]], () => nextPage++, true);
    answers.push(answerOf(sequence));
  }
  return answers;
}

/** Runs all prompts together, the earlier ones decoding while later ones are still in their prompt. Pages are dealt from the last one down. */
export async function runTogether(runner: ModelRunner, prompts: readonly Prompt[]): Promise<Answer[]> {
  const sequences = prompts.map(begin);
  let nextPage = runner.numPages - 1;
  for (let turn = 0; !sequences.every(isDone); turn++) {
    let budget = maxStepTokens;
    const parts: [Sequence, number][] = [];
    for (const [index, sequence] of sequences.entries()) {
      const length = Math.min(budget, chunkLengths[(turn + index) % chunkLengths.length], remaining(sequence));
      if (isDone(sequence) || length === 0) continue;
      parts.push([sequence, length]);
      budget -= length;
    }
    await step(runner, parts, () => nextPage--, false);
  }
  return sequences.map(answerOf);
}

/** Cache tokens that the prompts need all together. */
export function cacheTokens(prompts: readonly Prompt[], pageSize: number): number {
  return prompts.reduce(
    (sum, { ids, numGreedy }) => sum + Math.ceil((ids.length + numGreedy) / pageSize) * pageSize,
    0,
  );
}

/** Natural log of the sum of exp(logit), in float64. */
export function logSumExp(row: Float32Array): number {
  let largest = -Infinity;
  for (let i = 0; i < row.length; i++) if (row[i] > largest) largest = row[i];
  let sum = 0;
  for (let i = 0; i < row.length; i++) sum += Math.exp(row[i] - largest);
  return largest + Math.log(sum);
}

/** The logits at a position that must have been kept. */
export function keptRow({ rows }: Answer, position: number): Float32Array {
  const row = rows.get(position);
  if (row === undefined) throw new Error(`no logits were kept for position ${position}`);
  return row;
}

export function meanNll(logprobs: readonly number[]): number {
  return -logprobs.reduce((sum, value) => sum + value, 0) / logprobs.length;
}

/** The largest logit less the second. */
export function margin(row: Float32Array): number {
  let best = -Infinity;
  let second = -Infinity;
  for (const value of row) {
    if (value > best) [best, second] = [value, best];
    else if (value > second) second = value;
  }
  return best - second;
}

function begin(prompt: Prompt): Sequence {
  return { prompt, ids: [...prompt.ids], pages: [], rows: new Map(), logprobs: [], numComputed: 0 };
}

/** The last greedy token is not run through the model: nothing is asked of it. */
function isDone({ prompt, ids, numComputed }: Sequence): boolean {
  const numTokens = prompt.ids.length + prompt.numGreedy;
  return prompt.numGreedy === 0 ? numComputed === numTokens : ids.length === numTokens;
}

const remaining = ({ ids, numComputed }: Sequence): number => ids.length - numComputed;

const answerOf = ({ prompt, ids, rows, logprobs }: Sequence): Answer => ({
  rows,
  logprobs,
  greedy: ids.slice(prompt.ids.length),
});

/** Computes the next tokens, at most as many as said, of each sequence in one batch. */
async function step(
  runner: ModelRunner,
  parts: readonly (readonly [Sequence, number])[],
  takePage: () => number,
  scoresAll: boolean,
): Promise<void> {
  const chunks = parts.map(([sequence, most]) => ({
    sequence,
    first: sequence.numComputed,
    end: sequence.numComputed + Math.min(most, remaining(sequence)),
  }));
  for (const { sequence, end } of chunks) {
    while (sequence.pages.length * runner.pageSize < end) sequence.pages.push(takePage());
  }
  const wanted = chunks.map(({ sequence, first, end }) =>
    range(first, end).filter((position) => scoresAll || isKept(sequence.prompt, position)),
  );
  const output = await runner.execute(raggedBatch(runner.pageSize, chunks, wanted));
  let row = 0;
  for (const [index, { sequence, end }] of chunks.entries()) {
    sequence.numComputed = end;
    for (const position of wanted[index]) take(sequence, position, output.row(row++));
  }
}

function isKept({ ids, firstKept }: Prompt, position: number): boolean {
  return position >= Math.min(firstKept, ids.length - 1);
}

function take({ prompt, ids, rows, logprobs }: Sequence, position: number, row: Float32Array): void {
  if (isKept(prompt, position)) rows.set(position, row.slice());
  if (position + 1 < prompt.ids.length) logprobs.push(row[ids[position + 1]] - logSumExp(row));
  if (position + 1 === ids.length && ids.length < prompt.ids.length + prompt.numGreedy) ids.push(argmax(row));
}

/** The first index of the largest value. */
function argmax(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i] > row[best]) best = i;
  return best;
}
