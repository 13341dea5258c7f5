/**
 * Turns a row of logits into a token. The order: logit bias, repetition penalty, frequency and presence penalty; then the largest logit
 * (temperature 0), or temperature, min-p, top-k, top-p and a draw. The draw walks the candidates by token number up to the share of
 * their weight that the counter-based generator gives for (seed, sample, position), so it depends on the row and the parameters alone.
 */

import { KvasirError } from "../tensor/errors.ts";
import { Nucleus } from "./nucleus.ts";
import type { Penalties } from "./penalties.ts";
import { uniformAt } from "./random.ts";
import type { SamplingParams } from "./types.ts";

/** Temperatures below this count as 0, as in vLLM: dividing by them would overflow. */
export const LOWEST_TEMPERATURE = 1e-5;

/** A row of logits that no token can be drawn from: it holds a NaN or an infinity, or every token is forbidden. */
export class LogitsError extends KvasirError {
  override readonly name = "LogitsError";
}

/** What a draw depends on besides the row. */
export interface Draw {
  readonly params: SamplingParams;
  /** Present when the parameters have any (`Penalties.areNeeded`). */
  readonly penalties?: Penalties | undefined;
  readonly sampleIndex: number;
  /** Index in the sequence of the token to be drawn. */
  readonly position: number;
}

/** Draws tokens for all requests of one engine, one after another. */
export class TokenSampler {
  readonly #vocabSize: number;
  /** Made with the first draw: greedy decoding does without its 20 bytes per token of the vocabulary. */
  #nucleus: Nucleus | undefined;

  constructor(vocabSize: number) {
    this.#vocabSize = vocabSize;
  }

  /**
   * The next token. `row`: [vocabSize] logits, the same after the call as before it. `greedy`: the index of the row's largest logit,
   * where the device has found it. Throws LogitsError.
   */
  draw(row: Float32Array, { params, penalties, sampleIndex, position }: Draw, greedy?: number): number {
    const isGreedy = params.temperature < LOWEST_TEMPERATURE;
    if (isGreedy && penalties === undefined && greedy !== undefined && Number.isFinite(row[greedy])) return greedy;
    penalties?.apply(row);
    try {
      if (isGreedy) return largest(row);
      this.#nucleus ??= new Nucleus(this.#vocabSize);
      const total = this.#nucleus.select(row, params);
      if (Number.isNaN(total)) throw unusable(row);
      return pick(this.#nucleus, total * uniformAt(params.seed, sampleIndex, position));
    } finally {
      penalties?.restore(row);
    }
  }
}

/** The lowest token number among those with the largest logit. */
function largest(row: Float32Array): number {
  let best = -1;
  let highest = Number.NEGATIVE_INFINITY;
  for (let token = 0; token < row.length; token++) {
    if (row[token] <= highest) continue;
    if (Number.isNaN(row[token])) throw unusable(row);
    highest = row[token];
    best = token;
  }
  if (!Number.isFinite(highest)) throw unusable(row);
  return best;
}

function pick(nucleus: Nucleus, share: number): number {
  let sum = 0;
  const last = nucleus.length - 1;
  for (let i = 0; i < last; i++) {
    sum += nucleus.weights[i];
    if (sum > share) return nucleus.tokenIds[i];
  }
  return nucleus.tokenIds[last];
}

function unusable(row: Float32Array): LogitsError {
  const nan = row.findIndex((logit) => Number.isNaN(logit));
  if (nan >= 0) return new LogitsError(`logits[${nan}] is NaN: the model or its weights are at fault`);
  const infinite = row.indexOf(Number.POSITIVE_INFINITY);
  if (infinite >= 0) return new LogitsError(`logits[${infinite}] is Infinity: the model or its weights are at fault`);
  return new LogitsError("every token has a logit of -Infinity: logitBias must leave at least one token allowed");
}
