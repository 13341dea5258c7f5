/**
 * Decides which tokens are computed in the next step. One rule: every sequence has numComputedTokens < numTokens, and a step hands each
 * as many of the missing tokens as the budget allows, running ones first. That is decode, chunked prefill, prefix hits and recomputation.
 * What is sampled from the result, and when a sequence ends, is the core's affair. (Sarathi-Serve, 2024; vLLM v1.)
 */

import type { KvCache } from "../cache/kvCache.ts";
import type { StepBatch } from "./batch.ts";
import type { Sequence } from "./sequence.ts";

/** What a step may take; each at least 1. */
export interface SchedulerLimits {
  /** Token budget of a step. */
  readonly maxNumBatchedTokens: number;
  /** Sequences that run at once. */
  readonly maxNumSeqs: number;
  /** Logits rows of a step that may go to prompt log-probabilities. */
  readonly maxNumPromptRows: number;
}

/**
 * Both queues are kept in order of arrival, and waiting sequences are admitted from the front only. So the sequence that arrived first
 * always moves on, and it alone always fits: requests that do not are refused before they get here.
 */
export class Scheduler {
  readonly #cache: KvCache;
  readonly #limits: SchedulerLimits;
  readonly #running: Sequence[] = [];
  readonly #waiting: Sequence[] = [];
  #numPreemptions = 0;

  constructor(cache: KvCache, limits: SchedulerLimits) {
    this.#cache = cache;
    this.#limits = limits;
  }

  get numRunning(): number {
    return this.#running.length;
  }

  get numWaiting(): number {
    return this.#waiting.length;
  }

  get numPreemptions(): number {
    return this.#numPreemptions;
  }

  enqueue(sequence: Sequence): void {
    insert(this.#waiting, sequence);
  }

  /** Lets `sample` go on from where the running `parent` is: in its pages when a seat is free, else from the queue, by recomputation. */
  fork(parent: Sequence, sample: Sequence): void {
    sample.numCachedTokens = parent.numCachedTokens;
    sample.numReportedRows = parent.numReportedRows;
    if (parent.kv === undefined || this.#running.length >= this.#limits.maxNumSeqs) {
      this.enqueue(sample);
    } else {
      sample.kv = this.#cache.fork(parent.kv);
      sample.numComputedTokens = parent.numComputedTokens;
      insert(this.#running, sample);
    }
  }

  /** Lets go of a sequence, wherever it is. */
  remove(sequence: Sequence): void {
    const queue = sequence.kv === undefined ? this.#waiting : this.#running;
    const index = queue.indexOf(sequence);
    if (index >= 0) queue.splice(index, 1);
    this.#release(sequence);
  }

  /** Fills the empty batch with the next step. */
  schedule(batch: StepBatch): void {
    const hasPreempted = this.#continueRunning(batch);
    // Whoever was preempted is first in the queue: admitting it at once would only take back what it gave.
    if (!hasPreempted) this.#admitWaiting(batch);
  }

  #continueRunning(batch: StepBatch): boolean {
    let hasPreempted = false;
    for (let index = 0; index < this.#running.length; index++) {
      const sequence = this.#running[index];
      const numTokens = this.#share(sequence, batch);
      if (numTokens === 0) continue;
      while (sequence.kv !== undefined && !this.#cache.canAppend(sequence.kv, numTokens)) {
        this.#preemptLast();
        hasPreempted = true;
      }
      if (sequence.kv !== undefined) this.#give(sequence, sequence.kv, numTokens, batch);
    }
    return hasPreempted;
  }

  #admitWaiting(batch: StepBatch): void {
    while (this.#waiting.length > 0 && this.#running.length < this.#limits.maxNumSeqs) {
      const sequence = this.#waiting[0];
      if (this.#share(sequence, batch) === 0 || !this.#canAdmit(sequence)) return;
      this.#waiting.shift();
      const kv = this.#admit(sequence);
      insert(this.#running, sequence);
      this.#give(sequence, kv, this.#share(sequence, batch), batch);
    }
  }

  /** Tokens of the sequence that this step can still take. */
  #share(sequence: Sequence, batch: StepBatch): number {
    const budget = this.#limits.maxNumBatchedTokens - batch.numTokens;
    const numMissing = Math.min(sequence.numTokens - sequence.numComputedTokens, budget);
    const numRows = this.#limits.maxNumPromptRows - batch.numPromptRows;
    if (sequence.numUnreportedRows <= numRows) return numMissing;
    const rowsEnd = Math.max(sequence.numReportedRows, sequence.numComputedTokens) + numRows;
    return Math.min(numMissing, rowsEnd - sequence.numComputedTokens);
  }

  /**
   * All tokens must fit, not just this step's, and a page for each running sequence to grow by: what is admitted should not be the next to
   * be preempted. With nothing running everything fits.
   */
  #canAdmit(sequence: Sequence): boolean {
    const { tokens, numTokens, cacheSalt } = sequence;
    const reserve = this.#running.length;
    if (sequence.numUnreportedRows === 0) return this.#cache.canAdd(tokens, numTokens, cacheSalt, reserve);
    return Math.ceil(numTokens / this.#cache.pageSize) + reserve <= this.#cache.pool.numFree;
  }

  #admit(sequence: Sequence): NonNullable<Sequence["kv"]> {
    const { tokens, numTokens, cacheSalt } = sequence;
    // A cached prefix has no logits: whoever wants them of the prompt computes it.
    const kv =
      sequence.numUnreportedRows === 0 ? this.#cache.add(tokens, numTokens, cacheSalt) : this.#cache.create(cacheSalt);
    sequence.kv = kv;
    sequence.numComputedTokens = kv.numTokens;
    sequence.numCachedTokens ??= kv.numTokens;
    return kv;
  }

  #give(sequence: Sequence, kv: NonNullable<Sequence["kv"]>, numTokens: number, batch: StepBatch): void {
    batch.add(sequence, kv, numTokens);
    // Committed before they are computed, so that requests of one step share what they have in common: in each layer the step writes all
    // its keys and values before it reads any. Should the step fail, the core makes the cache forget.
    this.#cache.commit(kv, kv.numTokens);
  }

  /** The latest goes, which the loop over the running ones has not reached yet; what it was given to compute is found again by its prefix. */
  #preemptLast(): void {
    const victim = this.#running.pop();
    if (victim === undefined) throw new Error("no sequence is left to preempt");
    this.#release(victim);
    this.enqueue(victim);
    this.#numPreemptions++;
  }

  #release(sequence: Sequence): void {
    if (sequence.kv !== undefined) this.#cache.free(sequence.kv);
    sequence.kv = undefined;
    sequence.numComputedTokens = 0;
  }
}

/** Nearly always at the end (a new request) or the beginning (a preempted one). */
function insert(queue: Sequence[], sequence: Sequence): void {
  let index = queue.length;
  while (index > 0 && sequence.isBefore(queue[index - 1])) index--;
  queue.splice(index, 0, sequence);
}
