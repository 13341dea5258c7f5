/**
 * A request as the engine core takes it: token ids in, no text. Text, templates and streams are the business of `engine.ts`.
 */

import { ArgumentError, CapacityError } from "../tensor/errors.ts";
import type { SamplingParams } from "./types.ts";

/** One prompt to be continued, or scored. `validateRequest` says what is refused. */
export interface EngineRequest {
  /** Unique among the requests not yet finished. */
  readonly id: string;
  /** At least one token, each from 0 to vocabSize - 1. */
  readonly promptTokens: Int32Array;
  /** Tokens to generate per sample, at most; 0 only scores the prompt. */
  readonly maxTokens: number;
  /** Samples that continue the prompt independently; their prefill is shared. Default 1. */
  readonly n?: number;
  /** The sampler's; the core reads only whether `promptLogprobs` are asked for, and then computes the prompt without cached prefixes. */
  readonly sampling: SamplingParams;
  /** Requests share cached prefixes only with requests of the same salt. */
  readonly cacheSalt?: string;
}

/** What the model and its cache can hold; a request is checked against it before it is taken. */
export interface RequestLimits {
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly numPages: number;
  readonly pageSize: number;
}

/** Each sample has a state of its own from the beginning on: no request may fill the memory with them. */
const MAX_SAMPLES = 1024;

/** The most tokens a sequence may have in the cache. The token sampled last is never computed, so a text may be one longer. */
export function maxComputedTokens(limits: RequestLimits): number {
  return Math.min(limits.maxPositions, limits.numPages * limits.pageSize);
}

/**
 * Throws ArgumentError for an empty prompt, a token that is not in the vocabulary, or a count out of range, and CapacityError for a
 * prompt that neither preemption nor patience would ever fit.
 */
export function validateRequest(request: EngineRequest, limits: RequestLimits): void {
  const { id, promptTokens, maxTokens, n = 1 } = request;
  const { vocabSize, maxPositions, numPages, pageSize } = limits;
  const { length } = promptTokens;
  if (length === 0)
    throw new ArgumentError(
      `request ${id}: the prompt is empty; give at least one token, such as the model's begin token`,
    );
  if (!Number.isSafeInteger(maxTokens) || maxTokens < 0) {
    throw new ArgumentError(`request ${id}: maxTokens = ${maxTokens} must be an integer of at least 0`);
  }
  if (!Number.isInteger(n) || n < 1 || n > MAX_SAMPLES)
    throw new ArgumentError(`request ${id}: n = ${n} must be an integer from 1 to ${MAX_SAMPLES}`);
  if (length > maxPositions) {
    throw new CapacityError(
      `request ${id}: the prompt has ${length} tokens; the model's context holds ${maxPositions}`,
    );
  }
  if (length > numPages * pageSize) {
    throw new CapacityError(
      `request ${id}: the prompt has ${length} tokens; the cache holds ${numPages * pageSize} (${numPages} pages of ${pageSize}); raise maxNumTokens`,
    );
  }
  const at = promptTokens.findIndex((token) => token < 0 || token >= vocabSize);
  if (at >= 0) {
    throw new ArgumentError(
      `request ${id}: promptTokens[${at}] = ${promptTokens[at]} is not a token: the vocabulary has ${vocabSize} (0 to ${vocabSize - 1})`,
    );
  }
}
