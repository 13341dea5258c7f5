/**
 * The promise that a token's log-probabilities are the same bits in any company, as a test suite for one arithmetic of the bundled model.
 * Every comparison is an equality.
 */

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Engine, GenerateRequest, LoadOptions, Sample } from "../../src/engine/index.ts";
import { crowd, drawn, OPENING, startTales, talePrompt, tellAlone, tellTogether } from "./talesModel.ts";

/** Short prompts that grow: together they need three times the pool of `TINY_POOL`. */
const growing: readonly GenerateRequest[] = Array.from({ length: 9 }, (_, i) => ({
  prompt: talePrompt(9 + 5 * i, 40 * i),
  maxTokens: 40,
  ignoreEos: true,
  logprobs: 5,
  ...(i % 2 === 0 ? { temperature: 1, seed: i } : {}),
}));

const TINY_POOL = 160;

export type Arithmetic = Required<Pick<LoadOptions, "activations" | "cacheType">>;

/** One crowd, chunked, on three threads: for arithmetics whose parts are tested in whole elsewhere. */
export function itKeepsBitsInACrowd(arithmetic: Arithmetic): void {
  it(`log-probabilities are the same bits with ${arithmetic.activations} activations and an ${arithmetic.cacheType} cache`, async () => {
    const single = await startTales({ ...arithmetic, threads: 1 });
    const threaded = await startTales({ ...arithmetic, threads: 3, maxNumBatchedTokens: 64 });
    try {
      const alone = await tellAlone(single, crowd);
      expect((await tellTogether(threaded, crowd)).map(drawn)).toEqual(alone.map(drawn));
    } finally {
      await Promise.all([single.close(), threaded.close()]);
    }
  });
}

export function describeInvariance(arithmetic: Arithmetic): void {
  describe(`log-probabilities with ${arithmetic.activations} activations and an ${arithmetic.cacheType} cache`, () => {
    let single: Engine;
    let alone: Sample[];
    const open: Engine[] = [];

    const start = async (options: LoadOptions) => {
      const engine = await startTales({ ...arithmetic, ...options });
      open.push(engine);
      return engine;
    };

    beforeAll(async () => {
      single = await startTales({ ...arithmetic, threads: 1 });
      alone = await tellAlone(single, crowd);
    });
    afterAll(() => single.close());
    afterEach(async () => {
      await Promise.all(open.splice(0).map((engine) => engine.close()));
    });

    it.each([
      { maxNumBatchedTokens: 7, threads: 2 },
      { maxNumBatchedTokens: 64, threads: 3 },
      { maxNumBatchedTokens: 512, threads: 1 },
    ])("are the same bits alone and among 16 others, with %o", async (options) => {
      const together = await tellTogether(await start(options), crowd);
      expect(together.map(({ usage }) => usage.cachedTokens)).toEqual(crowd.map(() => 0));
      expect(together.map(drawn)).toEqual(alone.map(drawn));
    });

    it("are the same bits when the prefix comes from the cache, and when another salt keeps it out", async () => {
      const engine = await start({ maxNumBatchedTokens: 96 });
      const [first, second, salted] = [
        await tellTogether(engine, crowd),
        await tellTogether(engine, crowd),
        await tellTogether(engine, crowd, "pepper"),
      ];
      const hits = (samples: Sample[]) => samples.reduce((sum, { usage }) => sum + usage.cachedTokens, 0);
      expect([hits(first), hits(salted)]).toEqual([0, 0]);
      expect(hits(second)).toBeGreaterThan(1500);
      for (const samples of [first, second, salted]) expect(samples.map(drawn)).toEqual(alone.map(drawn));
    });

    it("are the same bits after preemptions", async () => {
      const tight = await start({ maxNumTokens: TINY_POOL, maxNumBatchedTokens: 48 });
      const together = await tellTogether(tight, growing);
      expect((await tight.stats()).numPreemptions).toBeGreaterThan(0);
      expect(together.map(drawn)).toEqual((await tellAlone(single, growing)).map(drawn));
    });

    it("are the same bits for forked samples as for requests of their own, and for tokens as they are given", async () => {
      const request = { prompt: OPENING, maxTokens: 24, ignoreEos: true, logprobs: 5 };
      const [own] = await tellAlone(single, [request]);
      const engine = await start({ maxNumTokens: 96, maxNumBatchedTokens: 5 });
      const greedy = await engine.complete({ ...request, n: 5 });
      expect(greedy.samples.map(drawn)).toEqual(Array(5).fill(drawn(own)));

      const seeded = { ...request, temperature: 1, seed: 3, n: 4 };
      const { samples } = await engine.complete(seeded);
      expect(samples.map(drawn)).toEqual((await single.complete(seeded)).samples.map(drawn));
      expect(new Set(samples.map(({ text }) => text)).size).toBe(4);

      const prompt = await single.tokenize(OPENING);
      for (const { tokenIds, logprobs } of samples) {
        const text = [...prompt, ...tokenIds];
        const scored = await engine.complete({ prompt: text, maxTokens: 0, promptLogprobs: 5 });
        expect(scored.promptLogprobs?.slice(prompt.length)).toEqual(logprobs);
      }
    });
  });
}
