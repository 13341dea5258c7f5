/** Requests to an engine and when their tokens arrived: what the model benchmark measures with. */

import type { Engine } from "../src/engine/index.ts";
import type { GenerateRequest } from "../src/engine/types.ts";
import { type ModelWork, randomTokens } from "./modelFile.ts";

interface Arrivals {
  /** Milliseconds of `performance.now()`, one for each token. */
  readonly times: readonly number[];
  readonly firstTokenSeconds: number;
  readonly cachedTokens: number;
}

async function ask(engine: Engine, request: GenerateRequest): Promise<Arrivals> {
  const times: number[] = [];
  let [firstTokenSeconds, cachedTokens] = [0, 0];
  for await (const { tokenIds, timing, usage } of engine.generate({ ignoreEos: true, ...request })) {
    const now = performance.now();
    if (times.length === 0) [firstTokenSeconds, cachedTokens] = [timing.firstTokenSeconds, usage.cachedTokens];
    for (const _ of tokenIds) times.push(now);
  }
  return { times, firstTokenSeconds, cachedTokens };
}

/** Seconds until the first token behind a prompt of `tokens`, none of it cached. */
export async function prefillSeconds(engine: Engine, work: ModelWork, tokens: number, salt: string): Promise<number> {
  const request = { prompt: randomTokens(work, tokens, 1), maxTokens: 1, cacheSalt: salt };
  return (await ask(engine, request)).firstTokenSeconds;
}

export interface DecodeLoad {
  readonly sequences: number;
  /** Tokens of each prompt, computed beforehand. */
  readonly context: number;
  /** Tokens that each sequence generates. */
  readonly tokens: number;
}

/** Tokens per second of all sequences together, from when each has its first token on. */
export async function decodeRate(engine: Engine, work: ModelWork, load: DecodeLoad): Promise<number> {
  const { sequences, context, tokens } = load;
  const prompts = Array.from({ length: sequences }, (_, i) => randomTokens(work, context, i + 1));
  // The prompts of a load are the same in every round: the first computes them, later ones find them in the cache.
  for (const prompt of prompts) await ask(engine, { prompt, maxTokens: 1 });
  const all = await Promise.all(prompts.map((prompt) => ask(engine, { prompt, maxTokens: tokens })));
  const from = Math.max(...all.map(({ times }) => times[0]));
  const counted = all.flatMap(({ times }) => times.filter((time) => time > from));
  return counted.length / ((Math.max(...counted) - from) / 1000);
}

export interface PrefixLoad {
  readonly requests: number;
  readonly sharedTokens: number;
  readonly ownTokens: number;
}

export interface FirstTokens {
  /** Mean over the requests, all of which begin at once. */
  readonly meanSeconds: number;
  /** Until every request has its first token. */
  readonly lastSeconds: number;
  readonly cachedTokens: number;
}

/** Requests whose prompts begin alike, none of it cached before; with `isShared` they may share what they compute. */
export async function firstTokens(
  engine: Engine,
  work: ModelWork,
  { requests, sharedTokens, ownTokens }: PrefixLoad,
  isShared: boolean,
  salt: string,
): Promise<FirstTokens> {
  const shared = randomTokens(work, sharedTokens, 1);
  const all = await Promise.all(
    Array.from({ length: requests }, (_, i) =>
      ask(engine, {
        prompt: [...shared, ...randomTokens(work, ownTokens, i + 2)],
        maxTokens: 1,
        cacheSalt: isShared ? salt : `${salt}, request ${i}`,
      }),
    ),
  );
  const seconds = all.map(({ firstTokenSeconds }) => firstTokenSeconds);
  return {
    meanSeconds: seconds.reduce((sum, each) => sum + each, 0) / requests,
    lastSeconds: Math.max(...seconds),
    cachedTokens: all.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0),
  };
}
