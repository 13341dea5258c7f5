import { afterEach, describe, expect, it } from "vitest";
import { type AlphabetOptions, alphabetBackend, END_TOKEN, logitsAfter } from "../../test/fixtures/engine/alphabet.ts";
import { ArgumentError, CapacityError, DeviceError } from "../tensor/errors.ts";
import { channelPair } from "./channel.ts";
import { Engine } from "./engine.ts";
import { serveEngine } from "./host.ts";
import { logSumExp } from "./logprobs.ts";
import type { FromWorker, ToWorker } from "./messages.ts";
import { nextTurn } from "./nextTurn.ts";
import { LogitsError } from "./sampler.ts";
import type { GenerateChunk, GenerateRequest } from "./types.ts";

const open: Engine[] = [];

async function start(options: AlphabetOptions = {}) {
  const [handleEnd, hostEnd] = channelPair<FromWorker, ToWorker>();
  const backend = alphabetBackend(options);
  serveEngine(hostEnd, async () => backend);
  const engine = await Engine.connect(handleEnd, "alphabet");
  open.push(engine);
  return { engine, runner: backend.runner };
}

async function take(chunks: AsyncIterable<GenerateChunk>, count: number): Promise<GenerateChunk[]> {
  const taken: GenerateChunk[] = [];
  for await (const chunk of chunks) if (taken.push(chunk) === count) break;
  return taken;
}

/** All pages are free again, or kept for their prefix alone. */
async function expectIdle(engine: Engine): Promise<void> {
  await expect.poll(() => engine.stats()).toMatchObject({ numRunning: 0, numWaiting: 0, usedPages: 0 });
}

afterEach(async () => {
  await Promise.all(open.splice(0).map((engine) => engine.close()));
});

describe("Engine", () => {
  it("streams a greedy continuation to the end token", async () => {
    const { engine } = await start();
    const chunks = await take(engine.generate({ prompt: "xv" }), 100);
    expect(chunks.map(({ text }) => text)).toEqual(["w", "x", "y", "z", ""]);
    expect(chunks.map(({ tokenIds }) => tokenIds)).toEqual([[119], [120], [121], [122], [END_TOKEN]]);
    const last = chunks[4];
    expect(last).toMatchObject({ index: 0, finishReason: "stop", stopReason: END_TOKEN });
    expect(last.usage).toEqual({ promptTokens: 2, cachedTokens: 0, completionTokens: 5 });
    expect(chunks[3].finishReason).toBeUndefined();
    expect(last.timing.elapsedSeconds).toBeGreaterThanOrEqual(last.timing.firstTokenSeconds);
    expect(last.timing.tokensPerSecond).toBeGreaterThan(0);
    await expectIdle(engine);
  });

  it("ends at maxTokens, at a stop string across tokens, at a stop token, or ignores the end token", async () => {
    const { engine } = await start();
    const ask = async (request: Omit<GenerateRequest, "prompt">) =>
      (await engine.complete({ prompt: "a", ...request })).samples[0];
    const results = await Promise.all([
      ask({ maxTokens: 3 }),
      ask({ stop: ["nope", "efg"] }),
      ask({ stopTokens: [101] }),
      ask({ maxTokens: 27, ignoreEos: true }),
    ]);
    const [length, stop, token, past] = results;
    expect(length).toMatchObject({ text: "bcd", finishReason: "length" });
    expect(stop).toMatchObject({
      text: "bcd",
      finishReason: "stop",
      stopReason: "efg",
      tokenIds: [98, 99, 100, 101, 102, 103],
    });
    expect(token).toMatchObject({ text: "bcd", finishReason: "stop", stopReason: 101, tokenIds: [98, 99, 100, 101] });
    expect(past).toMatchObject({ text: "bcdefghijklmnopqrstuvwxyz<end>a", finishReason: "length" });
  });

  it("holds back what may become a stop string, and gives it out when it does not", async () => {
    const { engine } = await start();
    const chunks = await take(engine.generate({ prompt: "a", stop: "cdz", maxTokens: 4 }), 9);
    expect(chunks.map(({ text }) => text)).toEqual(["b", "", "", "cde"]);
    const held = await take(engine.generate({ prompt: "a", stop: "cdz", maxTokens: 3 }), 9);
    expect(held.map(({ text }) => text)).toEqual(["b", "", "cd"]);
  });

  it("gives the log-probabilities of the raw logits, of output and prompt", async () => {
    const { engine } = await start();
    const { samples, promptLogprobs = [] } = await engine.complete({
      prompt: "abcq",
      maxTokens: 2,
      logprobs: 2,
      promptLogprobs: 1,
      logitBias: { 114: -100 },
    });
    const [first, second] = samples[0].logprobs ?? [];
    const row = logitsAfter(113, 3);
    expect(first.tokenId).not.toBe(114); // the bias forbids "r", the log-probabilities do not know it
    expect(first.top[0]).toEqual({ tokenId: 114, logprob: 8 - logSumExp(row) });
    expect(first.logprob).toBe(row[first.tokenId] - logSumExp(row));
    expect(second.top).toHaveLength(2);
    expect(promptLogprobs).toHaveLength(4);
    expect(promptLogprobs[0]).toBeUndefined();
    expect(promptLogprobs[1]?.top).toEqual([{ tokenId: 98, logprob: 8 - logSumExp(logitsAfter(97, 0)) }]);
    const surprise = logitsAfter(99, 2);
    expect(promptLogprobs[3]).toMatchObject({ tokenId: 113, logprob: surprise[113] - logSumExp(surprise) });
  });

  it("scores a prompt without generating", async () => {
    const { engine } = await start();
    const { samples, promptLogprobs } = await engine.complete({ prompt: "abc", maxTokens: 0, promptLogprobs: 0 });
    expect(promptLogprobs).toHaveLength(3);
    expect(samples[0]).toMatchObject({ text: "", tokenIds: [], finishReason: "length" });
  });

  it("draws n different samples, the same ones for the same seed", async () => {
    const { engine } = await start();
    const request: GenerateRequest = { prompt: "hello", n: 4, temperature: 3, seed: 9, maxTokens: 12, ignoreEos: true };
    const first = await engine.complete(request);
    const again = await engine.complete(request);
    expect(first.samples.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    expect(new Set(first.samples.map(({ text }) => text)).size).toBe(4);
    expect(again.samples.map(({ text }) => text)).toEqual(first.samples.map(({ text }) => text));
  });

  it("draws the same text alone, in a crowd, in small chunks and after preemption", async () => {
    const request: GenerateRequest = {
      prompt: "once upon a time",
      temperature: 2,
      seed: 5,
      maxTokens: 40,
      ignoreEos: true,
      frequencyPenalty: 0.3,
    };
    const { engine: alone } = await start();
    const expected = (await alone.complete(request)).text;
    const { engine: crowded } = await start({ numPages: 40, maxNumBatchedTokens: 9 });
    const others = Array.from({ length: 7 }, (_, i) =>
      crowded.complete({ prompt: `another ${i}`, temperature: 2, seed: i, maxTokens: 60, ignoreEos: true }),
    );
    expect((await crowded.complete(request)).text).toBe(expected);
    await Promise.all(others);
    expect((await crowded.stats()).numPreemptions).toBeGreaterThan(0);
    await expectIdle(crowded);
  });

  it("counts tokens found in the prefix cache", async () => {
    const { engine } = await start();
    const prompt = "a long and shared opening";
    await engine.complete({ prompt, maxTokens: 1 });
    const { samples } = await engine.complete({ prompt, maxTokens: 1 });
    expect(samples[0].usage).toEqual({ promptTokens: 25, cachedTokens: 24, completionTokens: 1 });
    expect(await engine.stats()).toMatchObject({
      prefixHitTokens: 24,
      promptTokens: 50,
      generatedTokens: 2,
      numFinished: 2,
    });
  });

  it("cancels when the caller leaves the loop", async () => {
    const { engine } = await start();
    const chunks = await take(engine.generate({ prompt: "a", maxTokens: 4000, ignoreEos: true }), 3);
    expect(chunks.map(({ text }) => text).join("")).toBe("bcd");
    await expectIdle(engine);
    expect((await engine.stats()).generatedTokens).toBeLessThan(100);
  });

  it("cancels by signal, before and during the generation", async () => {
    const { engine } = await start();
    const controller = new AbortController();
    const texts: string[] = [];
    const running = (async () => {
      for await (const { text } of engine.generate({
        prompt: "a",
        maxTokens: 4000,
        ignoreEos: true,
        signal: controller.signal,
      })) {
        if (texts.push(text) === 5) controller.abort(new Error("enough"));
      }
    })();
    await expect(running).rejects.toThrow("enough");
    expect(texts).toHaveLength(5);
    await expect(engine.complete({ prompt: "a", signal: controller.signal })).rejects.toThrow("enough");
    await expectIdle(engine);
  });

  it("fails one request and not its neighbours", async () => {
    const { engine } = await start();
    const [good] = await Promise.all([
      engine.complete({ prompt: "a" }),
      expect(engine.complete({ prompt: "bad!" })).rejects.toThrow(LogitsError),
      expect(engine.complete({ prompt: "" })).rejects.toThrow(ArgumentError),
      expect(engine.complete({ prompt: [5, 128] })).rejects.toThrow("prompt[1] = 128 is not a token"),
      expect(engine.complete({ prompt: [1.5] })).rejects.toThrow("prompt[0] = 1.5 is not a token"),
      expect(engine.complete({ prompt: "x".repeat(2000) })).rejects.toThrow(CapacityError),
      expect(engine.complete({ prompt: "a", topP: 7 })).rejects.toThrow("topP = 7 must be from 0 to 1"),
      expect(engine.complete({ prompt: "a", stop: "" })).rejects.toThrow('stop[0] = ""'),
      expect(engine.complete({ prompt: [{ role: "user", content: "hi" }] })).rejects.toThrow("no chat template"),
      expect(engine.complete({ prompt: "a", templateVariables: { tool: () => 1 } })).rejects.toThrow("plain data"),
    ]);
    expect(good.text).toBe("bcdefghijklmnopqrstuvwxyz");
    await expectIdle(engine);
  });

  it("refuses what is no request, signal or token, naming it", async () => {
    const { engine } = await start();
    // What a caller without types may write.
    const untyped = (value: unknown): never => value as never;
    await expect(engine.complete(untyped(undefined))).rejects.toThrow(
      new ArgumentError("request = undefined must be an object with a prompt"),
    );
    await expect(engine.generate(untyped(undefined)).next()).rejects.toThrow(ArgumentError);
    await expect(engine.complete(untyped(["a"]))).rejects.toThrow('request = ["a"]');
    await expect(engine.complete({ prompt: "a", signal: untyped("x") })).rejects.toThrow(
      new ArgumentError('signal = "x" must be an AbortSignal'),
    );
    await expect(engine.detokenize([97, 128])).rejects.toThrow(
      new ArgumentError("tokenIds[1] = 128 is not a token: tokens are integers from 0 to 127"),
    );
    await expect(engine.detokenize(untyped("a"))).rejects.toThrow("tokenIds must be an array of token numbers");
    expect((await engine.complete({ prompt: "w" })).text).toBe("xyz");
    await expectIdle(engine);
  });

  it("runs 200 requests on a pool for 4", async () => {
    const { engine } = await start({ numPages: 32, maxNumSeqs: 64 });
    const letters = "abcdefghij";
    const texts = await Promise.all(
      Array.from({ length: 200 }, async (_, i) => (await engine.complete({ prompt: `${i}${letters[i % 10]}` })).text),
    );
    expect(texts).toEqual(Array.from({ length: 200 }, (_, i) => "bcdefghijklmnopqrstuvwxyz".slice(i % 10)));
    await expectIdle(engine);
  });

  it("fails the requests of a step that fails on the device, and goes on", async () => {
    const { engine } = await start();
    const results = await Promise.allSettled([
      engine.complete({ prompt: "a", maxTokens: 4000, ignoreEos: true }),
      engine.complete({ prompt: "#" }),
    ]);
    const reasons = results.map((result) => (result.status === "rejected" ? result.reason : undefined));
    expect(reasons).toEqual([new DeviceError("the device is on fire"), new DeviceError("the device is on fire")]);
    expect((await engine.complete({ prompt: "w" })).text).toBe("xyz");
    await expectIdle(engine);
  });

  it("closes once, rejects what runs and what comes after, and frees the model", async () => {
    const { engine, runner } = await start();
    const running = engine.complete({ prompt: "a", maxTokens: 4000, ignoreEos: true });
    const rejected = expect(running).rejects.toThrow("the engine was closed");
    await Promise.all([engine.close(), engine.close()]);
    await rejected;
    expect(runner.isClosed).toBe(true);
    await expect(engine.complete({ prompt: "a" })).rejects.toThrow("the engine was closed");
  });

  it("frees the model when the load is given up before it has ended", async () => {
    const [handleEnd, hostEnd] = channelPair<FromWorker, ToWorker>();
    const { promise, resolve } = Promise.withResolvers<ReturnType<typeof alphabetBackend>>();
    serveEngine(hostEnd, () => promise);
    const controller = new AbortController();
    const loading = Engine.connect(handleEnd, "alphabet", { signal: controller.signal });
    await nextTurn(); // the load is under way
    controller.abort(new Error("changed my mind"));
    await expect(loading).rejects.toThrow("changed my mind");
    const backend = alphabetBackend();
    resolve(backend);
    await expect.poll(() => backend.runner.isClosed).toBe(true);
  });

  it("tokenises, detokenises and describes", async () => {
    const { engine } = await start();
    expect(await engine.tokenize("abc")).toEqual([97, 98, 99]);
    expect(await engine.detokenize([97, 0])).toBe("a<end>");
    expect(engine.describe().vocabSize).toBe(128);
  });

  it("evaluates perplexity in windows", async () => {
    const { engine } = await start();
    const text = "abcdefghiq";
    const { numPredicted, meanNll, perplexity, bitsPerByte } = await engine.evaluate(text, { window: 4 });
    let nll = 0;
    // The ninth prediction would fall into a window that is not whole.
    for (let i = 1; i < text.length - 1; i++) {
      const row = logitsAfter(text.charCodeAt(i - 1), (i - 1) % 4);
      nll += logSumExp(row) - row[text.charCodeAt(i)];
    }
    expect(numPredicted).toBe(8);
    expect(meanNll).toBeCloseTo(nll / 8, 10);
    expect(perplexity).toBeCloseTo(Math.exp(nll / 8), 8);
    expect(bitsPerByte).toBeCloseTo(nll / 8 / Math.LN2, 10);
    await expect(engine.evaluate("a")).rejects.toThrow("text has 1 tokens");
    const twoDocuments = await engine.evaluate("abc\n<|endoftext|>\nde\n<|endoftext|>\n");
    expect(twoDocuments).toMatchObject({ numTokens: 7, numPredicted: 6, numBytes: 35 });
  });
});
