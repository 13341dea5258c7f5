/** What callers do wrong, and what they do all at once: an error that says what would be right, or the right answer, and an empty pool after. */

import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Engine, GenerateRequest, LoadOptions } from "../../src/engine/index.ts";
import { ArgumentError, CapacityError } from "../../src/tensor/index.ts";
import { OPENING, startTales, TALES_CONTEXT_LENGTH, TALES_VOCAB_SIZE, talePrompt } from "./talesModel.ts";

const POOL = 64;

async function expectEmptyPool(engine: Engine): Promise<void> {
  await expect
    .poll(() => engine.stats(), { timeout: 5000 })
    .toMatchObject({ usedPages: 0, numRunning: 0, numWaiting: 0, usedCacheBytes: 0 });
}

describe("an engine with a pool of 64 tokens", () => {
  let engine: Engine;
  beforeAll(async () => {
    engine = await startTales({ maxNumTokens: POOL, maxNumBatchedTokens: 8 });
  });
  afterEach(() => expectEmptyPool(engine));
  afterAll(() => engine.close());

  it.each([
    [65, "the prompt has 65 tokens; the cache holds 64 (4 pages of 16); raise maxNumTokens"],
    [TALES_CONTEXT_LENGTH + 1, "the prompt has 1025 tokens; the model's context holds 1024"],
  ])("refuses a prompt of %i tokens", async (length, message) => {
    const error: unknown = await engine.complete({ prompt: talePrompt(length) }).catch((reason) => reason);
    expect(error).toBeInstanceOf(CapacityError);
    expect(error).toHaveProperty("message", expect.stringContaining(message));
  });

  it("continues a prompt that fills the pool by the one token that needs no place", async () => {
    const { samples } = await engine.complete({ prompt: talePrompt(POOL), maxTokens: 10, ignoreEos: true });
    expect(samples[0]).toMatchObject({ finishReason: "length", tokenIds: [expect.any(Number)] });
  });

  it("begins a text of its own for an empty prompt", async () => {
    const { text, samples } = await engine.complete({ prompt: "", maxTokens: 8 });
    expect(text).not.toBe("");
    expect(samples[0].usage.promptTokens).toBe(1);
  });

  it("gives no token for maxTokens 0", async () => {
    const { samples } = await engine.complete({ prompt: OPENING, maxTokens: 0, n: 3 });
    expect(samples.map(({ tokenIds, finishReason }) => ({ tokenIds, finishReason }))).toEqual(
      Array(3).fill({ tokenIds: [], finishReason: "length" }),
    );
  });

  const token = `is not a token: tokens are integers from 0 to ${TALES_VOCAB_SIZE - 1}`;
  it.each<[Record<string, unknown>, string]>([
    [{ prompt: [] }, "the prompt is empty; give at least one token, such as the model's begin token"],
    [{ prompt: [5, -1] }, `prompt[1] = -1 ${token}`],
    [{ prompt: [TALES_VOCAB_SIZE] }, `prompt[0] = 4096 ${token}`],
    [{ prompt: [2 ** 40] }, `prompt[0] = 1099511627776 ${token}`],
    [{ prompt: [1.5] }, `prompt[0] = 1.5 ${token}`],
    [{ prompt: [Number.NaN] }, `prompt[0] = NaN ${token}`],
    [{ prompt: ["a"] }, `prompt[0] = "a" ${token}`],
    [{ prompt: null }, "prompt must be text, an array of token numbers or an array of messages, got null"],
    [{ prompt: [{ role: "user", content: "a" }] }, "this model has no chat template: give the text instead"],
    [{ n: 0 }, "n = 0 must be an integer from 1 to 1024"],
    [{ n: 1.5 }, "n = 1.5 must be an integer from 1 to 1024"],
    [{ n: 1e9 }, "n = 1000000000 must be an integer from 1 to 1024"],
    [{ maxTokens: -1 }, "maxTokens = -1 must be an integer of at least 0"],
    [{ max_tokens: 3 }, "max_tokens is not an option of a request: there are prompt, maxTokens,"],
    [{ stop: 5 }, "stop = 5 must be a string or an array of strings"],
    [{ stop: "" }, 'stop[0] = "" must have at least one character'],
    [{ stopTokens: [9999] }, "stopTokens entry = 9999 must be a token number from 0 to 4095"],
    [{ logitBias: { x: 1 } }, "logitBias key = x must be a token number from 0 to 4095"],
    [{ temperature: "1" }, 'temperature = "1" must be at least 0 and finite'],
    [{ ignoreEos: "no" }, 'ignoreEos = "no" must be true or false'],
    [{ logitBias: () => 1 }, "the request must be plain data"],
  ])("refuses %o", async (fields, message) => {
    // As JavaScript, which no compiler has checked, would write it.
    const request = { prompt: OPENING, ...fields } as unknown as GenerateRequest;
    const error: unknown = await engine.complete(request).catch((reason) => reason);
    expect(error).toBeInstanceOf(ArgumentError);
    expect(error).toHaveProperty("message", expect.stringContaining(message));
  });

  it("lets go of a request whose signal is aborted before or in the middle of its prefill", async () => {
    const reason = new Error("changed my mind");
    const controller = new AbortController();
    const prompt = talePrompt(60);
    const before = (await engine.stats()).numSteps;
    const request = engine.complete({ prompt, signal: controller.signal, cacheSalt: "aborted" });
    await expect.poll(async () => (await engine.stats()).numSteps - before, { interval: 0 }).toBeGreaterThan(0);
    const { numSteps, numRunning } = await engine.stats();
    controller.abort(reason);
    await expect(request).rejects.toBe(reason);
    // Eight steps would have been needed: the abort fell into the prefill, or the machine was too slow to tell.
    expect(numSteps - before < 8 ? numRunning : 1).toBe(1);
    await expectEmptyPool(engine);

    const { promptTokens } = await engine.stats();
    await expect(engine.complete({ prompt, signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect((await engine.stats()).promptTokens).toBe(promptTokens);
  });

  it("lets go of a request whose loop is left", async () => {
    for await (const { usage } of engine.generate({ prompt: OPENING, maxTokens: 50, ignoreEos: true, n: 2 })) {
      if (usage.completionTokens === 3) break;
    }
    await expectEmptyPool(engine);
  });

  it("answers 200 requests at once, though the pool holds four", async () => {
    const requests = Array.from(
      { length: 200 },
      (_, i): GenerateRequest => ({
        prompt: talePrompt(13, i % 20),
        maxTokens: 3,
        ignoreEos: true,
      }),
    );
    const completions = await Promise.all(requests.map((request) => engine.complete(request)));
    const own: string[] = [];
    for (const request of requests.slice(0, 20)) own.push((await engine.complete(request)).text);
    expect(completions.map(({ text }) => text)).toEqual(requests.map((_, i) => own[i % 20]));
  });
});

describe("an engine", () => {
  it("ends what runs when it is closed, and answers nothing after", async () => {
    const engine = await startTales();
    const running = [1, 2, 3].map((seed) =>
      engine.complete({ prompt: OPENING, maxTokens: 900, ignoreEos: true, temperature: 1, seed }),
    );
    const settled = Promise.allSettled(running);
    for await (const _ of engine.generate({ prompt: OPENING, maxTokens: 2 }));
    await engine.close();
    const results = await settled;
    expect(results.map((result) => result.status === "rejected" && String(result.reason))).toEqual(
      Array(3).fill(expect.stringContaining("the engine was closed")),
    );
    await expect(engine.complete({ prompt: OPENING })).rejects.toThrow("the engine was closed");
    await expect(engine.stats()).rejects.toThrow("the engine was closed");
    await engine.close();
  });

  it.each<[Record<string, unknown>, string]>([
    [{ maxNumToken: 4 }, "maxNumToken is not an option of loading: there are device, threads, maxNumTokens,"],
    [{ maxNumTokens: 0 }, "maxNumTokens must be a positive integer, got 0"],
    [{ threads: 0 }, "threads must be a whole number from 1 to 256, got 0"],
    [{ device: "gpu" }, 'device = "gpu" must be "auto" or "cpu"'],
    [{ cacheType: "f8" }, 'cacheType = "f8" must be "f16" or "f32"'],
    [{ maxNumTokens: 1e12 }, "no room for"],
  ])("refuses to load with %o", async (options, message) => {
    await expect(startTales({ ...(options as LoadOptions), worker: false })).rejects.toThrow(message);
  });

  it("takes any number of sequences and threads beyond the cores", async () => {
    const engine = await startTales({ maxNumSeqs: 1e9, threads: 5 });
    expect((await engine.complete({ prompt: OPENING, maxTokens: 6 })).text).toBe(" a king who had a son");
    await engine.close();
  });
});
