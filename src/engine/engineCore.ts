/**
 * Requests in, tokens out: takes requests, steps the model over whatever the scheduler chose, samples, forks, and ends what is done.
 * Token ids only; text, streams, workers and clocks are left to others.
 */

import { KvCache, type KvCacheStats } from "../cache/kvCache.ts";
import type { PageListener } from "../cache/pagePool.ts";
import { ArgumentError } from "../tensor/errors.ts";
import { StepBatch } from "./batch.ts";
import { type EngineRequest, maxComputedTokens, validateRequest } from "./request.ts";
import type { LogitsBatch, ModelRunner, SampledToken, Sampler } from "./runner.ts";
import { Scheduler } from "./scheduler.ts";
import { Sequence } from "./sequence.ts";
import type { FinishReason, Logprobs } from "./types.ts";

/** What a core works with, and its limits; each is an integer of at least 1. */
export interface EngineCoreOptions {
  /** Runs the steps; its vocabulary, pages and longest sequence bound what requests may ask. Stays the caller's to close. */
  readonly runner: ModelRunner;
  /** Draws the tokens. What it throws ends the one request it was asked for. */
  readonly sampler: Sampler;
  /** Token budget of a step. Default 512. */
  readonly maxNumBatchedTokens?: number;
  /** Sequences that run at once. Default 64. */
  readonly maxNumSeqs?: number;
  /** Logits rows of a step for prompt log-probabilities. Default: as many as take 64 MiB, at most the token budget. */
  readonly maxNumPromptRows?: number;
  /** Part of every prefix hash: names what the runner's pages mean. Default "". */
  readonly layout?: string;
  /** Told of pages allocated, evicted, hit and freed. */
  readonly listener?: PageListener;
}

/** What one step did for one sample. */
export interface StepOutput {
  readonly requestId: string;
  readonly sampleIndex: number;
  /** The token the step added, if any. */
  readonly token?: SampledToken;
  /** Log-probabilities of the prompt tokens that follow those reported before; the first report begins with token 1. */
  readonly promptLogprobs?: readonly Logprobs[];
  /** Set once per sample, in its last output. */
  readonly finishReason?: FinishReason | "error";
  /** With finishReason "error". */
  readonly error?: Error;
  /** Tokens of the prompt that were found in the cache. */
  readonly numCachedTokens: number;
}

/** What one step did. */
export interface StepResult {
  /** For each sample that has something new, in no promised order; those of one sample are in theirs. */
  readonly outputs: readonly StepOutput[];
  /** Tokens computed: 0 when there was only something to report. */
  readonly numTokens: number;
}

/** State now, and counts since the core was made. */
export interface EngineCoreStats extends KvCacheStats {
  readonly pageSize: number;
  readonly numRunning: number;
  readonly numWaiting: number;
  readonly numSteps: number;
  readonly numComputedTokens: number;
  readonly numGeneratedTokens: number;
  readonly numPreemptions: number;
}

const PROMPT_ROWS_BYTES = 64 * 2 ** 20;

/**
 * The engine without text and threads: requests of token ids are added and aborted between steps or during one, and `step` is called as
 * long as there is work. It owns the bookkeeping of the cache, not the runner.
 */
export class EngineCore {
  readonly #runner: ModelRunner;
  readonly #sampler: Sampler;
  readonly #cache: KvCache;
  readonly #scheduler: Scheduler;
  readonly #batch: StepBatch;
  /** The samples not yet finished, by request. Until the prefill is done only sample 0 is with the scheduler. */
  readonly #live = new Map<string, Set<Sequence>>();
  /** For the next result. */
  #outputs: StepOutput[] = [];
  #isStepping = false;
  #numArrivals = 0;
  #numSteps = 0;
  #numComputedTokens = 0;
  #numGeneratedTokens = 0;

  /** Throws ArgumentError for a limit below 1. */
  constructor(options: EngineCoreOptions) {
    const { runner, sampler, maxNumBatchedTokens = 512, maxNumSeqs = 64, layout = "", listener = {} } = options;
    const affordableRows = Math.max(1, Math.floor(PROMPT_ROWS_BYTES / (4 * runner.vocabSize)));
    const { maxNumPromptRows = Math.min(maxNumBatchedTokens, affordableRows) } = options;
    for (const [name, value] of Object.entries({ maxNumBatchedTokens, maxNumSeqs, maxNumPromptRows })) {
      if (!Number.isSafeInteger(value) || value < 1)
        throw new ArgumentError(`${name} = ${value} must be an integer of at least 1`);
    }
    const { numPages, pageSize } = runner;
    this.#runner = runner;
    this.#sampler = sampler;
    this.#cache = new KvCache({ numPages, pageSize, layout, listener });
    this.#scheduler = new Scheduler(this.#cache, { maxNumBatchedTokens, maxNumSeqs, maxNumPromptRows });
    const maxPages = Math.ceil(maxComputedTokens(runner) / pageSize);
    this.#batch = new StepBatch(this.#cache, {
      maxNumTokens: maxNumBatchedTokens,
      // Each sequence of a step has at least one token in it.
      maxNumSeqs: Math.min(maxNumSeqs, maxNumBatchedTokens),
      maxNumPromptRows,
      maxPages,
    });
  }

  /** Takes a request for the next step. Throws ArgumentError or CapacityError, and then nothing has changed; see `validateRequest`. */
  addRequest(request: EngineRequest): void {
    validateRequest(request, this.#runner);
    if (this.#live.has(request.id))
      throw new ArgumentError(`request ${request.id}: a request of this id is still running`);
    const arrival = this.#numArrivals++;
    const variant = this.#runner.cacheVariant?.(request.promptTokens.length) ?? "";
    // The length keeps a variant and a salt apart however they are spelt.
    const salt = `${variant.length}:${variant}${request.cacheSalt ?? ""}`;
    const samples = Array.from({ length: request.n ?? 1 }, (_, index) => new Sequence(request, index, arrival, salt));
    this.#live.set(request.id, new Set(samples));
    this.#scheduler.enqueue(samples[0]);
  }

  /**
   * Cancels a request; the next result says so for each of its samples. Nothing happens when it has ended already. Its pages are free at
   * once, also while a step that writes them is under way: nobody can be given them before the next step.
   */
  abort(id: string): void {
    this.#endRequest(id, "aborted");
  }

  /** Whether a step would do or report anything. */
  hasWork(): boolean {
    return this.#live.size > 0 || this.#outputs.length > 0;
  }

  /**
   * Computes one step. A failing device ends all requests that the step computed with finishReason "error"; the promise rejects only for a bug,
   * such as two steps at once.
   */
  async step(): Promise<StepResult> {
    if (this.#isStepping) throw new ArgumentError("step() was called while a step is under way; await it first");
    const batch = this.#batch;
    batch.clear();
    this.#scheduler.schedule(batch);
    if (batch.numTokens === 0) {
      if (this.#live.size > 0) throw new Error(`nothing could be scheduled for ${this.#live.size} live requests`);
      return this.#takeResult(0);
    }
    this.#isStepping = true;
    try {
      if (batch.copies.length > 0) this.#runner.copyPages(batch.copies);
      const logits = await this.#runner.execute(batch.toRagged());
      this.#readLogits(logits);
    } catch (error) {
      this.#cache.forget();
      for (const id of new Set(batch.sequences.map((sequence) => sequence.request.id)))
        this.#endRequest(id, "error", toError(error));
    } finally {
      this.#isStepping = false;
    }
    this.#numSteps++;
    this.#numComputedTokens += batch.numTokens;
    return this.#takeResult(batch.numTokens);
  }

  /** State and counts as of now; cheap enough for every step. */
  stats(): EngineCoreStats {
    return {
      ...this.#cache.stats(),
      pageSize: this.#cache.pageSize,
      numRunning: this.#scheduler.numRunning,
      numWaiting: this.#scheduler.numWaiting,
      numSteps: this.#numSteps,
      numComputedTokens: this.#numComputedTokens,
      numGeneratedTokens: this.#numGeneratedTokens,
      numPreemptions: this.#scheduler.numPreemptions,
    };
  }

  #readLogits(logits: LogitsBatch): void {
    for (const [index, sequence] of this.#batch.sequences.entries()) {
      // What was cancelled during the step is gone; its rows are passed over.
      if (this.#live.get(sequence.request.id)?.has(sequence))
        this.#readSequence(sequence, logits, this.#batch.rowsOf(index));
    }
  }

  /** What the sampler throws ends this one request. */
  #readSequence(
    sequence: Sequence,
    logits: LogitsBatch,
    { firstRow, numPromptRows, hasNextRow }: ReturnType<StepBatch["rowsOf"]>,
  ): void {
    try {
      const output =
        numPromptRows === 0 ? {} : { promptLogprobs: this.#readPromptRows(sequence, logits, firstRow, numPromptRows) };
      if (!hasNextRow) {
        if (numPromptRows > 0) this.#emit(sequence, output);
        return;
      }
      const row = firstRow + numPromptRows;
      // The first token of every sample comes from the same row; the others begin as copies of sample 0 without one.
      const siblings =
        sequence.sampleIndex === 0 && sequence.numGeneratedTokens === 0 ? this.#siblingsOf(sequence) : [];
      for (const sibling of siblings) this.#scheduler.fork(sequence, sibling);
      this.#continue(sequence, logits, row, output);
      for (const sibling of siblings) this.#continue(sibling, logits, row, {});
    } catch (error) {
      this.#endRequest(sequence.request.id, "error", toError(error));
    }
  }

  #readPromptRows(sequence: Sequence, logits: LogitsBatch, firstRow: number, numPromptRows: number): Logprobs[] {
    const promptLogprobs: Logprobs[] = [];
    for (let row = firstRow; row < firstRow + numPromptRows; row++) {
      const tokenId = sequence.tokens[++sequence.numReportedRows];
      promptLogprobs.push(this.#sampler.promptLogprob(sequence, logits, row, tokenId));
    }
    return promptLogprobs;
  }

  /** Samples the next token of a sequence whose tokens are all computed, and ends it when that was the last. */
  #continue(sequence: Sequence, logits: LogitsBatch, row: number, output: Pick<StepOutput, "promptLogprobs">): void {
    const { maxTokens } = sequence.request;
    // The last token need not fit: nothing is computed after it.
    const numRoom = maxComputedTokens(this.#runner) + 1 - sequence.numPromptTokens;
    if (maxTokens === 0) {
      this.#finish(sequence, { ...output, finishReason: "length" });
      return;
    }
    const token = this.#sampler.sample(sequence, logits, row);
    sequence.append(token.tokenId);
    this.#numGeneratedTokens++;
    if (this.#sampler.shouldStop(sequence, token.tokenId)) {
      this.#finish(sequence, { ...output, token, finishReason: "stop" });
    } else if (sequence.numGeneratedTokens >= Math.min(maxTokens, numRoom)) {
      this.#finish(sequence, { ...output, token, finishReason: "length" });
    } else {
      this.#emit(sequence, { ...output, token });
    }
  }

  #siblingsOf(sequence: Sequence): Sequence[] {
    return [...(this.#live.get(sequence.request.id) ?? [])].filter((sample) => sample !== sequence);
  }

  #endRequest(id: string, finishReason: "aborted" | "error", error?: Error): void {
    for (const sample of this.#live.get(id) ?? [])
      this.#finish(sample, error === undefined ? { finishReason } : { finishReason, error });
  }

  #finish(sequence: Sequence, output: Omit<StepOutput, "requestId" | "sampleIndex" | "numCachedTokens">): void {
    this.#emit(sequence, output);
    this.#scheduler.remove(sequence);
    const { id } = sequence.request;
    const samples = this.#live.get(id);
    samples?.delete(sequence);
    if (samples?.size === 0) this.#live.delete(id);
  }

  #emit(sequence: Sequence, output: Omit<StepOutput, "requestId" | "sampleIndex" | "numCachedTokens">): void {
    const { request, sampleIndex, numCachedTokens = 0 } = sequence;
    this.#outputs.push({ requestId: request.id, sampleIndex, numCachedTokens, ...output });
  }

  #takeResult(numTokens: number): StepResult {
    const outputs = this.#outputs;
    this.#outputs = [];
    return { outputs, numTokens };
  }
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}
