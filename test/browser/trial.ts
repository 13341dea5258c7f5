/**
 * What is done with an engine in every place alike: the same prompts, the same options, in Node and in a page. Where is page.ts's and
 * smoke.ts's matter.
 */

import type { Engine, LoadOptions } from "../../src/index.ts";

const PROMPTS = [
  "Once upon a time there was a poor woodcutter who lived",
  "The king had three daughters, and the youngest of them was so beautiful that",
];

/** Tokens compared between two places. */
const COMPARED_TOKENS = 32;
/** Tokens generated for the figure of speed. */
const TIMED_TOKENS = 128;
/** Prompts of so many tokens keep whichever thread computes them busy for a while: a page that does it itself stutters. */
const LONG_PROMPT_TOKENS = 1000;

export const activationChoices = ["f32", "int8"] as const;
export type Activations = (typeof activationChoices)[number];

/** What can be compared and printed of one engine's life. */
export interface Trial {
  readonly activations: Activations;
  /** Greedy continuations, one for each prompt, computed together. */
  readonly tokenIds: readonly (readonly number[])[];
  readonly texts: readonly string[];
  readonly threads: number;
  readonly device: string;
  /** Generated tokens of both prompts together, per second, warm. */
  readonly tokensPerSecond: number;
  readonly loadSeconds: number;
  readonly closeSeconds: number;
  /** The message with which the engine refuses work after `close`. */
  readonly refusal: string;
}

/** Loads by `load`, generates, closes. */
export async function runTrial(
  load: (options: LoadOptions) => Promise<Engine>,
  activations: Activations,
  threads?: number,
): Promise<Trial> {
  const startedAt = performance.now();
  const engine = await load({ activations, ...(threads === undefined ? {} : { threads }) });
  const loadSeconds = secondsSince(startedAt);
  const completions = await completeTogether(engine, COMPARED_TOKENS);
  const timedAt = performance.now();
  const timed = await completeTogether(engine, TIMED_TOKENS);
  const numTokens = timed.reduce((sum, { tokenIds }) => sum + tokenIds.length, 0);
  const tokensPerSecond = numTokens / secondsSince(timedAt);
  const longPrompt = Array.from({ length: LONG_PROMPT_TOKENS }, (_, i) => 300 + (i % 1000));
  await engine.complete({ prompt: longPrompt, maxTokens: 1 });
  const { threads: usedThreads, device } = engine.describe();
  const closingAt = performance.now();
  await engine.close();
  const closeSeconds = secondsSince(closingAt);
  const refusal = await engine.complete({ prompt: PROMPTS[0], maxTokens: 1 }).then(() => "none", String);
  return {
    activations,
    tokenIds: completions.map(({ tokenIds }) => tokenIds),
    texts: completions.map(({ text }) => text),
    threads: usedThreads,
    device,
    tokensPerSecond,
    loadSeconds,
    closeSeconds,
    refusal,
  };
}

async function completeTogether(engine: Engine, maxTokens: number) {
  const completions = await Promise.all(
    PROMPTS.map((prompt) => engine.complete({ prompt, maxTokens, ignoreEos: true })),
  );
  return completions.map(({ samples }) => samples[0]);
}

const secondsSince = (startedAt: number): number => (performance.now() - startedAt) / 1000;
