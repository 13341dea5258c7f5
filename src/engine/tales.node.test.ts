import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, it } from "vitest";
import { Engine } from "./engine.ts";
import type { GenerateRequest, LoadOptions, Sample } from "./types.ts";

const model = fileURLToPath(new URL("../../assets/tales-5m-q8_0.gguf", import.meta.url));
const expected: {
  prompts: { prompt: string; ids: number[]; logprobs: number[]; greedy: number[]; text: string }[];
} = JSON.parse(readFileSync(new URL("../../test/fixtures/engine/tales.json", import.meta.url), "utf8"));

const open: Engine[] = [];

async function start(options: LoadOptions): Promise<Engine> {
  const engine = await Engine.load(model, { threads: 1, ...options });
  open.push(engine);
  return engine;
}

afterEach(async () => {
  await Promise.all(open.splice(0).map((engine) => engine.close()));
});

describe("the bundled model in the engine", () => {
  it("equals transformers in float32: log-probabilities of the prompt, greedy tokens and text, all prompts at once", async () => {
    const engine = await start({ activations: "f32", cacheType: "f32" });
    const results = await Promise.all(
      expected.prompts.map(({ prompt, greedy }) =>
        engine.complete({ prompt, maxTokens: greedy.length, promptLogprobs: 0, ignoreEos: true }),
      ),
    );
    for (const [i, { promptLogprobs = [], samples }] of results.entries()) {
      const { ids, logprobs, greedy, text } = expected.prompts[i];
      expect(promptLogprobs.slice(1).map((entry) => entry?.tokenId)).toEqual(ids.slice(1));
      const distance = Math.max(
        ...logprobs.map((value, at) => Math.abs(value - (promptLogprobs[at + 1]?.logprob ?? Number.NaN))),
      );
      expect(distance).toBeLessThan(1e-4);
      expect(samples[0].tokenIds).toEqual(greedy);
      expect(samples[0].text).toBe(text);
    }
  });

  it("draws the same tokens with the same log-probabilities, bit for bit, alone and in a crowd that is chunked and preempted", async () => {
    const request: GenerateRequest = {
      prompt: expected.prompts[1].prompt,
      n: 2,
      temperature: 0.9,
      topP: 0.95,
      repetitionPenalty: 1.1,
      seed: 7,
      maxTokens: 32,
      ignoreEos: true,
      logprobs: 1,
    };
    const words = ({ tokenIds, logprobs }: Sample) => ({ tokenIds, logprobs });
    const alone = await (await start({})).complete(request);
    expect(alone.samples[0].tokenIds).not.toEqual(alone.samples[1].tokenIds);

    const crowded = await start({ threads: 2, maxNumTokens: 160, maxNumBatchedTokens: 12 });
    const others = Array.from({ length: 8 }, (_, i) =>
      crowded.complete({
        prompt: expected.prompts[i % 5].prompt,
        temperature: 1,
        seed: i,
        maxTokens: 40,
        ignoreEos: true,
      }),
    );
    const again = await crowded.complete(request);
    await Promise.all(others);
    expect((await crowded.stats()).numPreemptions).toBeGreaterThan(0);
    expect(again.samples.map(words)).toEqual(alone.samples.map(words));

    const hit = await crowded.complete(request);
    expect(hit.samples.map(words)).toEqual(alone.samples.map(words));
  });

  it("streams from the same thread, too", async () => {
    const engine = await start({ worker: false, activations: "f32", cacheType: "f32" });
    const [{ prompt, text }] = expected.prompts;
    let streamed = "";
    for await (const chunk of engine.generate({ prompt, maxTokens: 6 })) streamed += chunk.text;
    expect(streamed).toBe(" a king who had a son");
    expect(text.startsWith(streamed)).toBe(true);
    expect(engine.describe()).toMatchObject({
      architecture: "llama",
      numParameters: 5_278_976,
      eosTokenIds: [0],
      threads: 1,
    });
  });
});
