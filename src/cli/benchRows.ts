/**
 * The measurements of `kvasir bench`, made through the engine as a program would use it. Prompts are random tokens; a salt keeps runs
 * from finding each other's prefixes where they must not.
 */

import type { Engine } from "../engine/index.ts";
import type { GenerateChunk, GenerateRequest } from "../engine/types.ts";

/** Median, least and most of the runs of a row. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/**
 * One line of the result.
 * - prefill: `promptTokens` computed at once, until the first token.
 * - decode: tokens of one sequence, generated one after another behind `contextTokens`.
 * - concurrent: the same for `sequences` at once; tokens per second are of all together.
 * - sharedPrefix: `sequences` requests whose prompts share all but their last tokens, none of it cached before, until each has its first
 *   token; tokens per second count every prompt in full.
 */
export interface BenchRow {
  readonly name: "prefill" | "decode" | "concurrent" | "sharedPrefix";
  readonly promptTokens: number;
  readonly contextTokens: number;
  readonly sequences: number;
  readonly tokensPerSecond: Spread;
  readonly seconds: Spread;
}

/** What `measureRows` tells: a row is done, is left out, or is being measured. */
export type BenchStep =
  | { readonly kind: "row"; readonly row: BenchRow }
  | { readonly kind: "skipped"; readonly reason: string }
  | { readonly kind: "measuring"; readonly what: string };

const PREFILL_TOKENS = [64, 512, 2048];
const DECODE_CONTEXTS = [128, 1024, 4096];
const CONCURRENT = [1, 2, 4, 8, 16];
const CONCURRENT_CONTEXT = 256;
const GENERATED_TOKENS = 64;
const SHARED_SEQUENCES = 8;
const SHARED_TOKENS = 2048;
/** Tokens by which the prompts of a shared prefix differ. */
const OWN_TOKENS = 16;

/** One row to be measured. */
interface Plan {
  readonly shape: Pick<BenchRow, "name" | "promptTokens" | "contextTokens" | "sequences">;
  /** Tokens of the longest sequence, and of all sequences with what they share counted once. */
  readonly longest: number;
  readonly held: number;
  /** Measures once: the tokens that count, and the seconds they took. */
  measure(salt: string): Promise<{ tokens: number; seconds: number }>;
}

/** Measures every row `repeat` times, after one run that is not counted. Rows that the context or the cache cannot hold are left out. */
export async function* measureRows(
  engine: Engine,
  repeat: number,
  maxNumTokens: number,
  signal: AbortSignal,
): AsyncGenerator<BenchStep> {
  const { contextLength } = engine.describe();
  for (const { shape, longest, held, measure } of plans(engine, signal)) {
    const what = `${shape.name} ${shape.name === "prefill" || shape.name === "sharedPrefix" ? shape.promptTokens : shape.contextTokens} x ${shape.sequences}`;
    if (longest > contextLength) {
      yield { kind: "skipped", reason: `${what}: ${longest} tokens, but the model's context is ${contextLength}` };
      continue;
    }
    if (held > maxNumTokens) {
      yield {
        kind: "skipped",
        reason: `${what}: ${held} tokens, but the cache holds ${maxNumTokens}; see --max-num-tokens`,
      };
      continue;
    }
    const runs: { tokens: number; seconds: number }[] = [];
    for (let run = 0; run <= repeat; run++) {
      yield { kind: "measuring", what: `${what}, run ${run} of ${repeat}` };
      const result = await measure(`${what} ${run}`);
      if (run > 0) runs.push(result);
    }
    const tokensPerSecond = spread(runs.map(({ tokens, seconds }) => tokens / seconds));
    yield { kind: "row", row: { ...shape, tokensPerSecond, seconds: spread(runs.map(({ seconds }) => seconds)) } };
  }
}

function plans(engine: Engine, signal: AbortSignal): Plan[] {
  const { vocabSize, eosTokenIds } = engine.describe();
  const prompt = (length: number, seed: number): number[] => randomTokens(length, seed, vocabSize, eosTokenIds);
  const start = (request: GenerateRequest): Promise<Arrivals> =>
    arrivals(engine.generate({ ignoreEos: true, ...request, signal }));

  /** `sequences` prompts of `context` tokens, computed beforehand, then continued together. */
  const continued = (context: number, sequences: number) => async () => {
    const prompts = Array.from({ length: sequences }, (_, i) => prompt(context, i));
    // The same for every run: only the first computes the prompts, the others find them in the cache.
    const cacheSalt = `continued ${context} x ${sequences}`;
    for (const each of prompts) await start({ prompt: each, maxTokens: 1, cacheSalt });
    const results = await Promise.all(
      prompts.map((each) => start({ prompt: each, maxTokens: GENERATED_TOKENS, cacheSalt })),
    );
    // From when the last sequence has its first token on, all of them decode in every step.
    const from = Math.max(...results.map(({ first }) => first));
    const counted = results.flatMap(({ times }) => times.filter((time) => time > from));
    return { tokens: counted.length, seconds: (Math.max(...counted) - from) / 1000 };
  };

  const prefill = PREFILL_TOKENS.map(
    (tokens): Plan => ({
      shape: { name: "prefill", promptTokens: tokens, contextTokens: 0, sequences: 1 },
      longest: tokens + 1,
      held: tokens + 1,
      async measure(cacheSalt) {
        const { firstTokenSeconds } = await start({ prompt: prompt(tokens, 1), maxTokens: 1, cacheSalt });
        return { tokens, seconds: firstTokenSeconds };
      },
    }),
  );
  const decode = DECODE_CONTEXTS.map(
    (context): Plan => ({
      shape: { name: "decode", promptTokens: context, contextTokens: context, sequences: 1 },
      longest: context + GENERATED_TOKENS,
      held: context + GENERATED_TOKENS,
      measure: continued(context, 1),
    }),
  );
  const concurrent = CONCURRENT.map(
    (sequences): Plan => ({
      shape: { name: "concurrent", promptTokens: CONCURRENT_CONTEXT, contextTokens: CONCURRENT_CONTEXT, sequences },
      longest: CONCURRENT_CONTEXT + GENERATED_TOKENS,
      held: sequences * (CONCURRENT_CONTEXT + GENERATED_TOKENS),
      measure: continued(CONCURRENT_CONTEXT, sequences),
    }),
  );
  const promptTokens = SHARED_TOKENS + OWN_TOKENS;
  const sharedPrefix: Plan = {
    shape: { name: "sharedPrefix", promptTokens, contextTokens: SHARED_TOKENS, sequences: SHARED_SEQUENCES },
    longest: promptTokens + 1,
    held: SHARED_TOKENS + SHARED_SEQUENCES * (2 * OWN_TOKENS),
    async measure(cacheSalt) {
      const shared = prompt(SHARED_TOKENS, 1);
      const began = performance.now();
      const all = Array.from({ length: SHARED_SEQUENCES }, (_, i) =>
        start({ prompt: [...shared, ...prompt(OWN_TOKENS, 2 + i)], maxTokens: 1, cacheSalt }),
      );
      const last = Math.max(...(await Promise.all(all)).map(({ first }) => first));
      return { tokens: SHARED_SEQUENCES * promptTokens, seconds: (last - began) / 1000 };
    },
  };
  return [...prefill, ...decode, ...concurrent, sharedPrefix];
}

/** When the tokens of a request arrived, in milliseconds of `performance.now()`. */
interface Arrivals {
  readonly first: number;
  readonly times: readonly number[];
  readonly firstTokenSeconds: number;
}

async function arrivals(chunks: AsyncIterable<GenerateChunk>): Promise<Arrivals> {
  const times: number[] = [];
  let firstTokenSeconds = 0;
  for await (const { tokenIds, timing } of chunks) {
    const now = performance.now();
    if (times.length === 0) firstTokenSeconds = timing.firstTokenSeconds;
    for (const _ of tokenIds) times.push(now);
  }
  return { first: times[0], times, firstTokenSeconds };
}

/** Tokens that no model stops at, the same for the same seed: a linear congruential generator (Numerical Recipes). */
export function randomTokens(length: number, seed: number, vocabSize: number, excluded: readonly number[]): number[] {
  const tokens: number[] = [];
  let state = (seed * 2_654_435_761) >>> 0;
  while (tokens.length < length) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const token = Math.floor((state / 2 ** 32) * vocabSize);
    if (!excluded.includes(token)) tokens.push(token);
  }
  return tokens;
}

/** Median (of an even number: the mean of the middle two), least and most. */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return { median, min: sorted[0], max: sorted[sorted.length - 1] };
}
