/** The engine core's sampler: finds the live sample a sequence belongs to, draws its tokens and follows its text for stop strings. */

import type { LiveRequest, LiveSample } from "./liveRequest.ts";
import { logprobsOf } from "./logprobs.ts";
import type { LogitsBatch, SampledToken, Sampler } from "./runner.ts";
import { TokenSampler } from "./sampler.ts";
import type { Sequence } from "./sequence.ts";
import type { Logprobs } from "./types.ts";

/** The sampler of an engine: draws by the parameters and penalties of the request that a sequence belongs to. */
export class RequestSampler implements Sampler {
  readonly #requests: ReadonlyMap<string, LiveRequest>;
  readonly #tokens: TokenSampler;

  /** `requests`: those that are live, by the core's name for them; read at each call. */
  constructor(requests: ReadonlyMap<string, LiveRequest>, vocabSize: number) {
    this.#requests = requests;
    this.#tokens = new TokenSampler(vocabSize);
  }

  /** Throws LogitsError when nothing can be drawn from the row. */
  sample(sequence: Sequence, logits: LogitsBatch, row: number): SampledToken {
    const { params, penalties } = this.#sampleOf(sequence);
    const values = logits.row(row);
    const tokenId = this.#tokens.draw(
      values,
      { params, penalties, sampleIndex: sequence.sampleIndex, position: sequence.numTokens },
      logits.greedy?.[row],
    );
    if (params.logprobs === undefined) return { tokenId };
    return { tokenId, logprobs: logprobsOf(values, tokenId, params.logprobs, logits.logSumExp?.[row]) };
  }

  shouldStop(sequence: Sequence, tokenId: number): boolean {
    const sample = this.#sampleOf(sequence);
    sample.accept(tokenId);
    return sample.stopReason !== undefined;
  }

  promptLogprob(sequence: Sequence, logits: LogitsBatch, row: number, tokenId: number): Logprobs {
    const { params } = this.#sampleOf(sequence);
    return logprobsOf(logits.row(row), tokenId, params.promptLogprobs ?? 0, logits.logSumExp?.[row]);
  }

  #sampleOf(sequence: Sequence): LiveSample {
    const sample = this.#requests.get(sequence.request.id)?.samples[sequence.sampleIndex];
    if (sample === undefined) throw new Error(`request ${sequence.request.id} is computed but not live`);
    return sample;
  }
}
