/**
 * The bundled model for tests of the whole engine: how to start it, seventeen requests that meet every boundary it has inside (pages of 16
 * tokens, blocks of 32 keys, chunks of 256 keys), and what must not depend on the company they are computed in.
 */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Engine, type GenerateRequest, type LoadOptions, type Sample } from "../../src/engine/index.ts";

export const TALES_VOCAB_SIZE = 4096;
/** Longest sequence the model was made for. */
export const TALES_CONTEXT_LENGTH = 1024;

const path = fileURLToPath(new URL("../../assets/tales-5m-q8_0.gguf", import.meta.url));
const { prompts }: { prompts: { prompt: string; ids: number[]; greedy: number[] }[] } = JSON.parse(
  readFileSync(new URL("../fixtures/engine/tales.json", import.meta.url), "utf8"),
);

export const OPENING = prompts[0].prompt;

/** Some 360 tokens of tales, over and over. */
const document = prompts.flatMap(({ ids, greedy }) => [...ids, ...greedy]);

/** A prompt of that many tokens. Its first token names `start`, so that prompts of different `start` share no prefix. */
export function talePrompt(length: number, start = 0): number[] {
  return Array.from({ length }, (_, i) => (i === 0 ? 1000 + start : document[(start + i) % document.length]));
}

export function startTales(options: LoadOptions = {}): Promise<Engine> {
  return Engine.load(path, { threads: 2, ...options });
}

/** Prompts from one token to more than two chunks of keys, half of them drawn at random, half greedy; each tells the top 5 of every token. */
export const crowd: readonly GenerateRequest[] = [
  1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 129, 255, 300, 530,
].map((length, i) => ({
  prompt: talePrompt(length, 20 * i),
  maxTokens: 6,
  ignoreEos: true,
  logprobs: 5,
  ...(i % 2 === 0 ? { temperature: 0.9, topP: 0.95, seed: i } : {}),
}));

/** What a request's neighbours, chunks, hits and preemptions must leave as it is, to the last bit. */
export function drawn({ tokenIds, logprobs, text, finishReason }: Sample) {
  return { tokenIds, logprobs, text, finishReason };
}

/** Each request by itself, with nothing in the cache that it could use. */
export async function tellAlone(engine: Engine, requests: readonly GenerateRequest[]): Promise<Sample[]> {
  const samples: Sample[] = [];
  for (const [i, request] of requests.entries()) {
    samples.push(...(await engine.complete({ ...request, cacheSalt: `alone ${i}` })).samples);
  }
  return samples;
}

/** All requests at once. */
export async function tellTogether(
  engine: Engine,
  requests: readonly GenerateRequest[],
  cacheSalt = "",
): Promise<Sample[]> {
  const completions = await Promise.all(requests.map((request) => engine.complete({ ...request, cacheSalt })));
  return completions.flatMap(({ samples }) => samples);
}
