import { describe, expect, it } from "vitest";
import { GREEDY } from "../../test/engine/prefixModel.ts";
import { KvCache } from "../cache/kvCache.ts";
import { StepBatch } from "./batch.ts";
import { Scheduler, type SchedulerLimits } from "./scheduler.ts";
import { Sequence } from "./sequence.ts";

function setUp({
  numPages = 8,
  pageSize = 4,
  ...rest
}: Partial<SchedulerLimits> & { numPages?: number; pageSize?: number } = {}) {
  const limits = { maxNumBatchedTokens: 64, maxNumSeqs: 8, maxNumPromptRows: 64, ...rest };
  const cache = new KvCache({ numPages, pageSize });
  const scheduler = new Scheduler(cache, limits);
  const batch = new StepBatch(cache, {
    maxNumTokens: limits.maxNumBatchedTokens,
    maxNumSeqs: limits.maxNumSeqs,
    maxNumPromptRows: limits.maxNumPromptRows,
    maxPages: numPages,
  });
  /** Schedules a step, says who got how many tokens, and lets whoever is complete generate one. */
  const step = (): string => {
    batch.clear();
    scheduler.schedule(batch);
    const { queryIndptr } = batch.toRagged();
    const shares = batch.sequences.map(
      ({ request, sampleIndex }, index) =>
        `${request.id}${sampleIndex || ""} ${queryIndptr[index + 1] - queryIndptr[index]}`,
    );
    for (const sequence of batch.sequences) if (sequence.numComputedTokens === sequence.numTokens) sequence.append(1);
    return shares.join(", ");
  };
  let arrival = 0;
  /** A sequence whose prompt shares nothing with any other. */
  const sequence = (id: string, length: number, promptLogprobs?: number) => {
    const promptTokens = new Int32Array(length).fill(100 + arrival);
    return new Sequence({ id, promptTokens, maxTokens: 100, sampling: { ...GREEDY, promptLogprobs } }, 0, arrival++);
  };
  const enqueue = (id: string, length: number, promptLogprobs?: number) => {
    const enqueued = sequence(id, length, promptLogprobs);
    scheduler.enqueue(enqueued);
    return enqueued;
  };
  return { cache, scheduler, step, sequence, enqueue };
}

describe("Scheduler", () => {
  it("lets decodes go first and fills the budget with a prompt's next chunk", () => {
    const { step, enqueue } = setUp({ maxNumBatchedTokens: 6, numPages: 16 });
    enqueue("a", 2);
    enqueue("b", 9);
    expect([step(), step(), step()]).toEqual(["a 2, b 4", "a 1, b 5", "a 1, b 1"]);
  });

  it("preempts the latest, admits nobody in the same step, and then the preempted one first, which finds its prefix again", () => {
    const { cache, scheduler, step, enqueue } = setUp({ numPages: 6 });
    enqueue("a", 7);
    enqueue("b", 7);
    expect(step()).toBe("a 7, b 7");
    enqueue("c", 2);
    // Two pages are left; c would fit, but not with a page for each of a and b to grow by.
    expect(step()).toBe("a 1, b 1");
    expect(step()).toBe("a 1, b 1");
    for (let grown = 0; grown < 3; grown++) expect(step()).toBe("a 1, b 1");
    expect(cache.stats().usedPages).toBe(6);
    expect(step()).toBe("a 1");
    expect([scheduler.numPreemptions, scheduler.numRunning, scheduler.numWaiting]).toEqual([1, 1, 2]);
    expect(step()).toBe("a 1");
  });

  it("recomputes a preempted sequence from its cached pages when there is room again", () => {
    const { scheduler, step, enqueue } = setUp({ numPages: 6 });
    const a = enqueue("a", 7);
    const b = enqueue("b", 7);
    for (let index = 0; index < 7; index++) step();
    expect([b.kv, b.numComputedTokens, b.numTokens]).toEqual([undefined, 0, 13]);
    scheduler.remove(a);
    // a has taken the last of b's three pages; of the two others b's eight tokens are found.
    expect(step()).toBe("b 5");
    expect([b.numCachedTokens, b.numTokens]).toEqual([0, 14]);
  });

  it("keeps the samples of a request in its place when they are forked", () => {
    const { scheduler, step, sequence, enqueue } = setUp({ numPages: 8, maxNumSeqs: 3 });
    const a = enqueue("a", 6);
    enqueue("b", 2);
    step();
    const samples = [1, 2].map((index) => new Sequence(a.request, index, a.arrival));
    a.tokens[--a.numTokens] = 0;
    for (const sample of samples) {
      scheduler.fork(a, sample);
      sample.append(2 + sample.sampleIndex);
    }
    a.append(2);
    expect([scheduler.numRunning, scheduler.numWaiting]).toEqual([3, 1]);
    scheduler.enqueue(sequence("c", 1));
    expect(step()).toBe("a 1, a1 1, b 1");
    scheduler.remove(a);
    expect(step()).toBe("a1 1, b 1, a2 3");
  });

  it("takes no more prompt rows into a step than it may, and none from whoever generates", () => {
    const { step, enqueue } = setUp({ maxNumPromptRows: 5, numPages: 16 });
    enqueue("a", 4, 0);
    enqueue("b", 9, 0);
    enqueue("c", 3);
    expect(step()).toBe("a 4, b 2, c 3");
  });

  it("lets go of a sequence wherever it is", () => {
    const { cache, scheduler, step, enqueue } = setUp({ maxNumSeqs: 1 });
    const running = enqueue("a", 5);
    const waiting = enqueue("b", 5);
    step();
    scheduler.remove(waiting);
    scheduler.remove(running);
    expect([scheduler.numRunning, scheduler.numWaiting, cache.stats().usedPages]).toEqual([0, 0, 0]);
  });
});
