/**
 * Random requests arrive, fork, are preempted and cancelled on pools of all sizes. Whatever the schedule, every sample must be the text that
 * the model makes when it is alone, and nothing may be left behind.
 */

import fc from "fast-check";
import { expect, it } from "vitest";
import { GREEDY, generateAlone, logitsAfter, PrefixModel, PrefixSampler } from "../../test/engine/prefixModel.ts";
import { EngineCore, type StepOutput } from "./engineCore.ts";
import { type EngineRequest, maxComputedTokens } from "./request.ts";

interface Arrival {
  /** Number of the step before which the request comes. */
  readonly at: number;
  readonly request: EngineRequest;
  /** Number of the step in (or before) which it is cancelled. */
  readonly abort: { readonly at: number; readonly isInStep: boolean } | undefined;
}

const arrivals = fc
  .array(
    fc.record({
      at: fc.nat(20),
      // Mostly one letter, so that prefixes meet.
      promptTokens: fc.array(fc.constantFrom(3, 3, 3, 3, 3, 3, 3, 4), { minLength: 1, maxLength: 30, size: "max" }),
      maxTokens: fc.nat(25),
      n: fc.constantFrom(1, 1, 1, 2, 3),
      temperature: fc.constantFrom(0, 1),
      seed: fc.nat(3),
      promptLogprobs: fc.constantFrom(undefined, undefined, undefined, 0),
      cacheSalt: fc.constantFrom("", "", "other"),
      abort: fc.option(fc.record({ at: fc.nat(30), isInStep: fc.boolean() }), { freq: 3, nil: undefined }),
    }),
    { minLength: 1, maxLength: 24, size: "max" },
  )
  .map((drawn): Arrival[] =>
    drawn.map(({ at, abort, temperature, seed, promptLogprobs, promptTokens, ...rest }, index) => ({
      at,
      abort,
      request: {
        ...rest,
        id: `${index}`,
        promptTokens: Int32Array.from(promptTokens),
        sampling: { ...GREEDY, temperature, seed, promptLogprobs },
      },
    })),
  );

const setups = fc.record({
  numPages: fc.integer({ min: 2, max: 30 }),
  pageSize: fc.integer({ min: 1, max: 6 }),
  maxPositions: fc.constantFrom(20, 1000),
  maxNumBatchedTokens: fc.constantFrom(1, 2, 5, 16, 100),
  maxNumSeqs: fc.integer({ min: 1, max: 8 }),
  maxNumPromptRows: fc.constantFrom(1, 4, 100),
});

type SetupOf = typeof setups extends fc.Arbitrary<infer Setup> ? Setup : never;

const totals = { samples: 0, preemptions: 0, hitTokens: 0, copies: 0, evictions: 0, refused: 0, aborted: 0, scored: 0 };

async function drive(setup: SetupOf, requests: readonly Arrival[]): Promise<void> {
  const { numPages, pageSize, maxPositions, ...limits } = setup;
  let now = 0;
  const abortDue = (isInStep: boolean) => {
    for (const { abort, request } of requests)
      if (abort?.at === now && abort.isInStep === isInStep) core.abort(request.id);
  };
  const model = new PrefixModel({ numPages, pageSize, maxPositions, duringStep: () => abortDue(true) });
  const core = new EngineCore({ runner: model, sampler: new PrefixSampler(), ...limits });
  const capacity = maxComputedTokens(model);
  const taken: Arrival[] = [];
  const outputs: StepOutput[] = [];
  for (; now < 20 || core.hasWork(); now++) {
    expect(now).toBeLessThan(20_000);
    for (const arrival of requests) {
      if (arrival.at !== now) continue;
      if (arrival.request.promptTokens.length > capacity) {
        expect(() => core.addRequest(arrival.request)).toThrow("the prompt has");
        totals.refused++;
      } else {
        core.addRequest(arrival.request);
        taken.push(arrival);
      }
    }
    abortDue(false);
    outputs.push(...(await core.step()).outputs);
    const { usedPages, cachedPages, freePages, numRunning } = core.stats();
    expect(usedPages + cachedPages + freePages).toBe(numPages);
    expect(numRunning).toBeLessThanOrEqual(limits.maxNumSeqs);
  }
  for (const batch of model.batches) expect(batch.numTokens).toBeLessThanOrEqual(limits.maxNumBatchedTokens);
  for (const { request, abort } of taken) {
    for (let index = 0; index < (request.n ?? 1); index++) {
      const own = outputs.filter(({ requestId, sampleIndex }) => requestId === request.id && sampleIndex === index);
      checkSample(request, index, own, capacity, abort !== undefined);
    }
  }
  const stats = core.stats();
  expect(stats).toMatchObject({ usedPages: 0, numRunning: 0, numWaiting: 0 });
  totals.preemptions += stats.numPreemptions;
  totals.hitTokens += stats.hitTokens;
  totals.copies += stats.copies;
  totals.evictions += stats.evictions;
}

function checkSample(
  request: EngineRequest,
  index: number,
  outputs: readonly StepOutput[],
  capacity: number,
  mayBeAborted: boolean,
): void {
  const alone = generateAlone(request, index, capacity);
  const tokens = outputs.flatMap(({ token }) => (token === undefined ? [] : [token.tokenId]));
  const reasons = outputs.map(({ finishReason }) => finishReason);
  const reason = reasons.at(-1);
  expect(reasons.filter((each) => each !== undefined)).toEqual([reason]);
  const scored = outputs.flatMap(({ promptLogprobs = [] }) => promptLogprobs.map(({ logprob }) => logprob));
  const prompt = Array.from(request.promptTokens);
  const scores =
    request.sampling.promptLogprobs === undefined || index > 0
      ? []
      : prompt.slice(1).map((token, at) => logitsAfter(prompt.slice(0, at + 1), prompt.length)[token]);
  totals.samples++;
  if (mayBeAborted && reason === "aborted") {
    totals.aborted++;
    expect(tokens).toEqual(alone.tokens.slice(0, tokens.length));
    expect(scored).toEqual(scores.slice(0, scored.length));
  } else {
    expect({ tokens, reason, scored }).toEqual({ ...alone, scored: scores });
    totals.scored += scored.length;
  }
}

it("gives every sample the text it has alone, under any schedule, and leaves the pool empty", {
  timeout: 60_000,
}, async () => {
  await fc.assert(fc.asyncProperty(setups, arrivals, drive), {
    numRuns: 400,
    seed: 7,
    interruptAfterTimeLimit: 50_000,
    markInterruptAsFailure: true,
  });
  // The runs are worth nothing if they do not go where the difficulties are.
  expect(totals.samples).toBeGreaterThan(2000);
  for (const count of Object.values(totals)) expect(count).toBeGreaterThan(80);
});
