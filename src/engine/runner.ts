/**
 * What the engine core needs of its two neighbours: a model that runs one ragged batch (the interface is the models'), and a sampler that
 * turns one row of logits into a token. Interfaces only; `requestSampler.ts` implements the second, tests both with fakes.
 */

import type { LogitsBatch } from "../models/runner.ts";
import type { Sequence } from "./sequence.ts";
import type { Logprobs } from "./types.ts";

export type { LogitsBatch, ModelRunner, RaggedBatch } from "../models/runner.ts";

/** A token drawn for one sample. */
export interface SampledToken {
  readonly tokenId: number;
  /** Present when the request asks for log-probabilities. */
  readonly logprobs?: Logprobs;
}

/**
 * Chooses tokens. What it remembers of a sample (counts for penalties, say) it keys by the `Sequence` object, which lives as long as
 * the sample does, preemption included; random numbers come from (seed, sampleIndex, numTokens), so that a recomputed step draws the same.
 * An exception ends the one request it was thrown for.
 */
export interface Sampler {
  /** The next token of the sequence, whose tokens so far are `sequence.tokens[0..numTokens - 1]`. Does not append it. */
  sample(sequence: Sequence, logits: LogitsBatch, row: number): SampledToken;
  /** Asked after a token was appended: does it end the sample (an end or stop token, a stop string)? Lengths are the core's affair. */
  shouldStop(sequence: Sequence, tokenId: number): boolean;
  /** Log-probability of a prompt token under the logits of the row before it. */
  promptLogprob(sequence: Sequence, logits: LogitsBatch, row: number, tokenId: number): Logprobs;
}
