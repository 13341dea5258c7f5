import { describe, expect, it } from "vitest";
import {
  GREEDY,
  generateAlone,
  LONG_PROMPT,
  logitsAfter,
  PrefixModel,
  type PrefixModelOptions,
  PrefixSampler,
} from "../../test/engine/prefixModel.ts";
import { EngineCore, type EngineCoreOptions, type StepOutput } from "./engineCore.ts";
import type { EngineRequest } from "./request.ts";

interface Setup extends Partial<PrefixModelOptions>, Omit<Partial<EngineCoreOptions>, "runner"> {}

function setUp({ numPages = 32, pageSize = 4, maxPositions = 1000, duringStep = () => {}, ...options }: Setup = {}) {
  const model = new PrefixModel({ numPages, pageSize, maxPositions, duringStep });
  const core = new EngineCore({ sampler: new PrefixSampler(), ...options, runner: model });
  return { model, core };
}

function request(id: string, promptTokens: readonly number[], options: Partial<EngineRequest> = {}): EngineRequest {
  return { id, promptTokens: Int32Array.from(promptTokens), maxTokens: 6, sampling: GREEDY, ...options };
}

async function runAll(core: EngineCore): Promise<StepOutput[]> {
  const outputs: StepOutput[] = [];
  for (let step = 0; core.hasWork(); step++) {
    if (step > 10_000) throw new Error("the core does not come to an end");
    outputs.push(...(await core.step()).outputs);
  }
  return outputs;
}

const of = (outputs: readonly StepOutput[], id: string, sampleIndex = 0) =>
  outputs.filter((output) => output.requestId === id && output.sampleIndex === sampleIndex);
const tokensOf = (outputs: readonly StepOutput[], id: string, sampleIndex = 0) =>
  of(outputs, id, sampleIndex).flatMap(({ token }) => (token === undefined ? [] : [token.tokenId]));
const reasonsOf = (outputs: readonly StepOutput[], id: string, sampleIndex = 0) =>
  of(outputs, id, sampleIndex).flatMap(({ finishReason }) => finishReason ?? []);
const range = (length: number, offset = 0) => Array.from({ length }, (_, index) => 1 + ((index + offset) % 10));
const expectEmpty = (core: EngineCore) =>
  expect(core.stats()).toMatchObject({ usedPages: 0, numRunning: 0, numWaiting: 0 });

describe("EngineCore", () => {
  it("hands out the budget by the one rule: running ones first, then waiting ones, prompts in chunks", async () => {
    const { model, core } = setUp({ maxNumBatchedTokens: 8, maxNumSeqs: 2 });
    core.addRequest(request("long", range(18), { maxTokens: 2 }));
    core.addRequest(request("short", range(3, 5), { maxTokens: 2 }));
    core.addRequest(request("third", range(2, 7), { maxTokens: 1 }));
    await runAll(core);
    expect(model.batches).toEqual([
      { numTokens: 8, numSeqs: 1, numRows: 0 },
      { numTokens: 8, numSeqs: 1, numRows: 0 },
      { numTokens: 2 + 3, numSeqs: 2, numRows: 2 },
      { numTokens: 1 + 1, numSeqs: 2, numRows: 2 },
      { numTokens: 2, numSeqs: 1, numRows: 1 },
    ]);
    expectEmpty(core);
  });

  it("shares a prefix among requests of one and the same step", async () => {
    const { model, core } = setUp({ numPages: 64 });
    const opening = range(17);
    for (let index = 0; index < 8; index++)
      core.addRequest(request(`tale ${index}`, [...opening, 1 + index], { maxTokens: 4 }));
    const outputs = await runAll(core);
    expect(model.batches[0]).toMatchObject({ numTokens: 18 + 7 * 2, numSeqs: 8 });
    for (let index = 0; index < 8; index++) {
      const { tokens } = generateAlone(request("", [...opening, 1 + index], { maxTokens: 4 }), 0, 128);
      expect(tokensOf(outputs, `tale ${index}`)).toEqual(tokens);
      expect(of(outputs, `tale ${index}`)[0].numCachedTokens).toBe(index === 0 ? 0 : 16);
    }
    expectEmpty(core);
  });

  it("does not share across salts", async () => {
    const { core } = setUp();
    core.addRequest(request("a", range(9), { cacheSalt: "alice" }));
    core.addRequest(request("b", range(9), { cacheSalt: "bob" }));
    const outputs = await runAll(core);
    expect(of(outputs, "b")[0].numCachedTokens).toBe(0);
  });

  it("does not share among prompts that the model computes in different ways", async () => {
    const { core } = setUp();
    const [short, long] = [range(LONG_PROMPT), range(LONG_PROMPT + 1)];
    core.addRequest(request("short", short));
    core.addRequest(request("salted", short, { cacheSalt: "long" }));
    core.addRequest(request("long", long));
    core.addRequest(request("again", long));
    const outputs = await runAll(core);
    const numCached = ["short", "salted", "long", "again"].map((id) => of(outputs, id)[0].numCachedTokens);
    expect(numCached).toEqual([0, 0, 0, 12]);
    expect(tokensOf(outputs, "long")).toEqual(generateAlone(request("", long), 0, 128).tokens);
  });

  it("forks n samples after one prefill, waiting for a seat where there is none", async () => {
    const sampling = { ...GREEDY, temperature: 1, seed: 5 };
    const { model, core } = setUp({ maxNumSeqs: 3 });
    const sampled = request("r", range(6), { n: 5, maxTokens: 9, sampling });
    core.addRequest(sampled);
    const outputs = await runAll(core);
    expect(model.batches[0]).toEqual({ numTokens: 6, numSeqs: 1, numRows: 1 });
    const texts = new Set<string>();
    for (let index = 0; index < 5; index++) {
      const { tokens, reason } = generateAlone(sampled, index, 128);
      expect(tokensOf(outputs, "r", index)).toEqual(tokens);
      expect(reasonsOf(outputs, "r", index)).toEqual([reason]);
      texts.add(`${tokens}`);
    }
    expect(texts.size).toBeGreaterThan(1);
    expect(core.stats().copies).toBeGreaterThan(0);
    expectEmpty(core);
  });

  it("finishes 200 requests at once on a pool for 4", async () => {
    const { model, core } = setUp({ numPages: 20, pageSize: 4, maxNumBatchedTokens: 32 });
    const requests = Array.from({ length: 200 }, (_, index) =>
      request(`${index}`, range(5 + (index % 9), index), { maxTokens: 12 }),
    );
    for (const each of requests) core.addRequest(each);
    const outputs = await runAll(core);
    for (const each of requests) {
      const { tokens, reason } = generateAlone(each, 0, 80);
      expect(tokensOf(outputs, each.id)).toEqual(tokens);
      expect(reasonsOf(outputs, each.id)).toEqual([reason]);
    }
    expect(Math.max(...model.batches.map(({ numTokens }) => numTokens))).toBeLessThanOrEqual(32);
    expect(core.stats().numPreemptions).toBeGreaterThan(0);
    expectEmpty(core);
  });

  it("fills the pool to the last slot, and ends a sample that has no room left", async () => {
    const { core } = setUp({ numPages: 3, pageSize: 4 });
    const sampling = { ...GREEDY, temperature: 1, seed: 3 };
    const greedy = request("full", range(12), { maxTokens: 50, sampling });
    core.addRequest(greedy);
    core.addRequest(request("growing", range(5, 1), { maxTokens: 50, sampling }));
    const outputs = await runAll(core);
    expect(tokensOf(outputs, "full")).toHaveLength(1);
    expect(tokensOf(outputs, "growing")).toEqual(
      generateAlone(request("", range(5, 1), { maxTokens: 50, sampling }), 0, 12).tokens,
    );
    expectEmpty(core);
  });

  it("ends at the model's context length", async () => {
    const { core } = setUp({ maxPositions: 7 });
    const sampling = { ...GREEDY, temperature: 1, seed: 1 };
    core.addRequest(request("r", range(5), { maxTokens: 50, sampling }));
    const outputs = await runAll(core);
    const { tokens, reason } = generateAlone(request("", range(5), { maxTokens: 50, sampling }), 0, 7);
    expect([tokensOf(outputs, "r"), reasonsOf(outputs, "r")]).toEqual([tokens, [reason]]);
    expect(tokens.length).toBeLessThanOrEqual(3);
  });

  it("refuses a request that can never run, and that one alone", async () => {
    const { core } = setUp({ numPages: 3, pageSize: 4, maxPositions: 40 });
    expect(() => core.addRequest(request("empty", []))).toThrow("request empty: the prompt is empty");
    expect(() => core.addRequest(request("pool", range(13)))).toThrow(
      "the prompt has 13 tokens; the cache holds 12 (3 pages of 4)",
    );
    expect(() => core.addRequest(request("context", range(41)))).toThrow(
      "the prompt has 41 tokens; the model's context holds 40",
    );
    expect(() => core.addRequest(request("token", [1, 11]))).toThrow(
      "promptTokens[1] = 11 is not a token: the vocabulary has 11 (0 to 10)",
    );
    expect(() => core.addRequest(request("token", [-1]))).toThrow("promptTokens[0] = -1 is not a token");
    expect(() => core.addRequest(request("count", [1], { maxTokens: -1 }))).toThrow(
      "maxTokens = -1 must be an integer of at least 0",
    );
    expect(() => core.addRequest(request("count", [1], { n: 0 }))).toThrow("n = 0 must be an integer from 1 to 1024");
    core.addRequest(request("good", range(4)));
    expect(() => core.addRequest(request("good", range(4)))).toThrow(
      "request good: a request of this id is still running",
    );
    const outputs = await runAll(core);
    expect(tokensOf(outputs, "good")).toEqual(generateAlone(request("", range(4)), 0, 12).tokens);
    expectEmpty(core);
  });

  it("cancels between steps, in mid-prefill and in mid-step", async () => {
    const aborts: (() => void)[] = [];
    const { core } = setUp({ maxNumBatchedTokens: 4, duringStep: () => aborts.shift()?.() });
    core.addRequest(request("waiting", range(9)));
    core.abort("waiting");
    core.addRequest(request("prefill", range(9, 3)));
    aborts.push(() => core.abort("prefill"));
    core.addRequest(request("survivor", range(5, 6)));
    core.abort("nobody");
    const outputs = await runAll(core);
    expect([reasonsOf(outputs, "waiting"), tokensOf(outputs, "waiting")]).toEqual([["aborted"], []]);
    expect([reasonsOf(outputs, "prefill"), tokensOf(outputs, "prefill")]).toEqual([["aborted"], []]);
    expect(tokensOf(outputs, "survivor")).toEqual(generateAlone(request("", range(5, 6)), 0, 128).tokens);
    expectEmpty(core);
  });

  it("reads the right rows when the first sequence of the step is cancelled in it", async () => {
    const { core } = setUp({ duringStep: () => core.abort("first") });
    core.addRequest(request("first", range(4)));
    core.addRequest(request("second", range(5, 3)));
    const outputs = await runAll(core);
    expect([reasonsOf(outputs, "first"), tokensOf(outputs, "first")]).toEqual([["aborted"], []]);
    expect(tokensOf(outputs, "second")).toEqual(generateAlone(request("", range(5, 3)), 0, 128).tokens);
  });

  it("scores a prompt without generating, chunk by chunk, and without the prefix cache", async () => {
    const { model, core } = setUp({ maxNumPromptRows: 3 });
    const prompt = range(10);
    core.addRequest(request("warm", prompt, { maxTokens: 1 }));
    await runAll(core);
    core.addRequest(request("eval", prompt, { maxTokens: 0, sampling: { ...GREEDY, promptLogprobs: 0 } }));
    const outputs = await runAll(core);
    const logprobs = outputs.flatMap((output) => output.promptLogprobs ?? []);
    expect(logprobs.map(({ tokenId }) => tokenId)).toEqual(prompt.slice(1));
    expect(logprobs.map(({ logprob }) => logprob)).toEqual(
      prompt.slice(1).map((token, index) => logitsAfter(prompt.slice(0, index + 1), prompt.length)[token]),
    );
    expect(reasonsOf(outputs, "eval")).toEqual(["length"]);
    expect(tokensOf(outputs, "eval")).toEqual([]);
    expect(model.batches.slice(1).map(({ numTokens, numRows }) => [numTokens, numRows])).toEqual([
      [3, 3],
      [3, 3],
      [4, 4],
    ]);
    expectEmpty(core);
  });

  it("gives a device's failure to every running request, and goes on without the pages it may have spoilt", async () => {
    const { core } = setUp({
      duringStep: (step) => {
        if (step === 2) throw new Error("the device is lost");
      },
    });
    core.addRequest(request("a", range(9), { n: 2 }));
    const failed = await runAll(core);
    for (const index of [0, 1]) {
      expect(reasonsOf(failed, "a", index)).toEqual(["error"]);
      expect(of(failed, "a", index).at(-1)?.error?.message).toBe("the device is lost");
    }
    expect(core.stats()).toMatchObject({ usedPages: 0, cachedPages: 0 });
    core.addRequest(request("b", range(9)));
    const outputs = await runAll(core);
    expect(of(outputs, "b")[0].numCachedTokens).toBe(0);
    expect(tokensOf(outputs, "b")).toEqual(generateAlone(request("", range(9)), 0, 128).tokens);
  });

  it("ends only the request whose sampler throws", async () => {
    class Failing extends PrefixSampler {
      override sample(...args: Parameters<PrefixSampler["sample"]>) {
        if (args[0].request.id === "bad" && args[0].numGeneratedTokens === 2)
          throw new Error("every token has a logit of -Infinity");
        return super.sample(...args);
      }
    }
    const { core } = setUp({ sampler: new Failing() });
    const sampling = { ...GREEDY, temperature: 1, seed: 9 };
    core.addRequest(request("bad", range(4), { sampling, n: 2 }));
    core.addRequest(request("good", range(5), { sampling }));
    const outputs = await runAll(core);
    expect(reasonsOf(outputs, "bad", 0)).toEqual(["error"]);
    expect(reasonsOf(outputs, "bad", 1)).toEqual(["error"]);
    expect(tokensOf(outputs, "good")).toEqual(generateAlone(request("", range(5), { sampling }), 0, 128).tokens);
    expectEmpty(core);
  });

  it("refuses limits and calls that make no sense", async () => {
    expect(() => setUp({ maxNumSeqs: 0 })).toThrow("maxNumSeqs = 0 must be an integer of at least 1");
    const { core } = setUp();
    core.addRequest(request("r", range(4)));
    const step = core.step();
    await expect(core.step()).rejects.toThrow("while a step is under way");
    await step;
    await runAll(core);
  });
});
