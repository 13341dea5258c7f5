import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Penalties } from "./penalties.ts";
import { uniformAt } from "./random.ts";
import { type Draw, LogitsError, TokenSampler } from "./sampler.ts";
import { resolveSampling } from "./samplingParams.ts";
import type { SamplingOptions } from "./types.ts";

const draw = (vocabSize: number, options: SamplingOptions, rest: Partial<Draw> = {}): Draw => ({
  params: resolveSampling({ prompt: [], seed: 1, ...options }, { vocabSize, eosTokenIds: [] }),
  sampleIndex: 0,
  position: 0,
  ...rest,
});

/** The definition: sort, cut, sum, walk. Works on the row that bias and penalties were applied to. */
function naiveDraw(row: readonly number[], { params, sampleIndex, position }: Draw): number {
  const ranked = row.map((logit, token) => ({ logit, token })).sort((a, b) => b.logit - a.logit || a.token - b.token);
  if (params.temperature === 0) return ranked[0].token;
  const weighted = ranked.map(({ logit, token }) => ({
    token,
    weight: Math.exp((logit - ranked[0].logit) / params.temperature),
  }));
  const ofMinP = weighted.filter(({ weight }) => weight > 0 && weight >= params.minP);
  const ofTopK = params.topK > 0 ? ofMinP.slice(0, params.topK) : ofMinP;
  const target = params.topP * sum(ofTopK.map(({ weight }) => weight));
  const kept: typeof ofTopK = [];
  let reached = 0;
  for (const entry of ofTopK) {
    if (kept.length > 0 && params.topP < 1 && reached >= target) break;
    reached += entry.weight;
    kept.push(entry);
  }
  const byToken = kept.sort((a, b) => a.token - b.token);
  let share = uniformAt(params.seed, sampleIndex, position) * sum(byToken.map(({ weight }) => weight));
  for (const { token, weight } of byToken) {
    share -= weight;
    if (share < 0) return token;
  }
  return byToken[byToken.length - 1].token;
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

const naivePenalties = (
  row: readonly number[],
  options: SamplingOptions,
  prompt: readonly number[],
  output: readonly number[],
) =>
  row.map((raw, token) => {
    let logit = raw + (options.logitBias?.[token] ?? 0);
    const count = output.filter((other) => other === token).length;
    if (prompt.includes(token) || count > 0) {
      logit = logit > 0 ? logit / (options.repetitionPenalty ?? 1) : logit * (options.repetitionPenalty ?? 1);
    }
    if (count > 0) logit -= (options.frequencyPenalty ?? 0) * count + (options.presencePenalty ?? 0);
    return Math.fround(logit);
  });

const settings = fc.record(
  {
    temperature: fc.oneof(fc.constant(0), fc.constantFrom(0.25, 0.7, 1, 3)),
    topK: fc.constantFrom(0, 1, 2, 5, 20, 1000),
    topP: fc.constantFrom(0.05, 0.31, 0.7, 0.913, 1),
    minP: fc.constantFrom(0, 0.01, 0.13, 1),
    repetitionPenalty: fc.constantFrom(1, 1.3, 0.8),
    presencePenalty: fc.constantFrom(0, 0.5),
    frequencyPenalty: fc.constantFrom(0, 0.2, -0.3),
    seed: fc.nat(),
  },
  { requiredKeys: [] },
);
// Multiples of 1/4 make ties frequent; the others make them rare.
const logit = fc.oneof(
  fc.integer({ min: -20, max: 20 }).map((v) => v / 4),
  fc.float({ min: -8, max: 8, noNaN: true }),
  fc.constant(-Infinity),
);
const rows = fc.array(logit, { minLength: 1, maxLength: 60 }).filter((row) => row.some((v) => v > -Infinity));

describe("TokenSampler", () => {
  it("equals sorting, cutting and summing in float64, for any settings", () => {
    fc.assert(
      fc.property(rows, settings, fc.nat(9), fc.nat(9999), (values, options, sampleIndex, position) => {
        const row = Float32Array.from(values);
        const how = draw(row.length, options, { sampleIndex, position });
        expect(new TokenSampler(row.length).draw(row, how)).toBe(naiveDraw([...row], how));
      }),
      { numRuns: 3000, seed: 20 },
    );
  });

  it("equals the same with bias and penalties, and leaves the row as it was", () => {
    const token = fc.nat(11);
    fc.assert(
      fc.property(
        fc.array(logit, { minLength: 12, maxLength: 12 }).filter((row) => row.some((v) => v > -Infinity)),
        settings,
        fc.dictionary(token.map(String), fc.constantFrom(-3, 2, 0.5)),
        fc.array(token, { maxLength: 100 }),
        fc.array(token, { maxLength: 9 }),
        (values, options, logitBias, prompt, output) => {
          const row = Float32Array.from(values);
          const plain = draw(row.length, { ...options, logitBias });
          const penalties = new Penalties(plain.params, Int32Array.from(prompt));
          for (const id of output) penalties.addOutput(id);
          const expected = naiveDraw(naivePenalties([...row], { ...options, logitBias }, prompt, output), plain);
          expect(new TokenSampler(row.length).draw(row, { ...plain, penalties })).toBe(expected);
          expect(row).toEqual(Float32Array.from(values));
        },
      ),
      { numRuns: 1000, seed: 21 },
    );
  });

  it("cuts a vocabulary of 65,536 as the definition does", () => {
    const row = Float32Array.from(
      { length: 65_536 },
      (_, token) => 8 * (uniformAt(5, 0, token) + uniformAt(5, 1, token)),
    );
    const sampler = new TokenSampler(row.length);
    for (const options of [{ topP: 0.9 }, { topK: 64, topP: 0.95 }, {}]) {
      const how = draw(row.length, { temperature: 0.8, ...options, seed: 11 });
      expect(sampler.draw(row, how)).toBe(naiveDraw([...row], how));
    }
  });

  it("draws with the softmax's frequencies", () => {
    const logits = [0, 1, -1, 2, 0.5, -2, 1.5, 0.25];
    const row = Float32Array.from(logits);
    const sampler = new TokenSampler(row.length);
    const counts = new Float64Array(row.length);
    const numDraws = 40_000;
    for (let position = 0; position < numDraws; position++) {
      counts[sampler.draw(row, draw(row.length, { temperature: 0.9, seed: 77 }, { position }))]++;
    }
    const weights = logits.map((v) => Math.exp(v / 0.9));
    const chiSquare = sum(
      weights.map((w, i) => (counts[i] - (numDraws * w) / sum(weights)) ** 2 / ((numDraws * w) / sum(weights))),
    );
    expect(chiSquare).toBeLessThan(24.3); // 7 degrees of freedom, 0.1 %
  });

  it("gives each sample of a request, and each seed, a stream of its own", () => {
    const row = new Float32Array(1000);
    const sampler = new TokenSampler(row.length);
    const stream = (seed: number, sampleIndex: number) =>
      Array.from({ length: 8 }, (_, position) =>
        sampler.draw(row, draw(row.length, { temperature: 1, seed }, { sampleIndex, position })),
      );
    expect(stream(1, 0)).toEqual(stream(1, 0));
    expect(stream(1, 1)).not.toEqual(stream(1, 0));
    expect(stream(2, 0)).not.toEqual(stream(1, 0));
  });

  it("takes the device's largest logit only when nothing changes the row", () => {
    const row = Float32Array.of(3, 5, 4);
    const sampler = new TokenSampler(3);
    expect(sampler.draw(row, draw(3, {}), 2)).toBe(2);
    const biased = draw(3, { logitBias: { 0: 9 } });
    expect(sampler.draw(row, { ...biased, penalties: new Penalties(biased.params, new Int32Array()) }, 1)).toBe(0);
  });

  it.each([0, 1])("refuses a row of no use at temperature %d", (temperature) => {
    const sampler = new TokenSampler(3);
    const how = draw(3, { temperature });
    expect(() => sampler.draw(Float32Array.of(0, Number.NaN, 9), how)).toThrow("logits[1] is NaN");
    expect(() => sampler.draw(Float32Array.of(0, 1, Infinity), how)).toThrow("logits[2] is Infinity");
    expect(() => sampler.draw(new Float32Array(3).fill(-Infinity), how)).toThrow(LogitsError);
    expect(() => sampler.draw(Float32Array.of(9, 1, Number.NaN), draw(3, { temperature, topK: 2 }))).toThrow(
      "logits[2] is NaN",
    );
    const banned = draw(3, { temperature, logitBias: { 0: -Infinity, 1: -Infinity, 2: -Infinity } });
    const row = Float32Array.of(1, 2, 3);
    expect(() => sampler.draw(row, { ...banned, penalties: new Penalties(banned.params, new Int32Array()) })).toThrow(
      "every token has a logit of -Infinity",
    );
    expect(row).toEqual(Float32Array.of(1, 2, 3));
  });
});

describe("resolveSampling", () => {
  it.each([
    [{ temperature: -1 }, "temperature = -1 must be at least 0 and finite"],
    [{ topP: 1.5 }, "topP = 1.5 must be from 0 to 1"],
    [{ topK: 2.5 }, "topK = 2.5 must be an integer of at least 0"],
    [{ repetitionPenalty: 0 }, "repetitionPenalty = 0 must be above 0"],
    [{ seed: -3 }, "seed = -3 must be an integer from 0 to 2^53 - 1"],
    [{ logitBias: { 9: 1 } }, "logitBias key = 9 must be a token number from 0 to 7"],
    [{ logitBias: { 3: Number.NaN } }, "logitBias[3] = NaN must be"],
  ])("refuses %j", (options, message) => {
    expect(() => draw(8, options)).toThrow(message);
  });
});
