/** A request while it runs, as the worker knows it: its parameters, and how the core's outputs become chunks. */

import type { EngineTokenizer } from "./backend.ts";
import type { StepOutput } from "./engineCore.ts";
import { OutputText } from "./outputText.ts";
import { Penalties } from "./penalties.ts";
import type { GenerateChunk, Logprobs, SamplingParams, Usage } from "./types.ts";

/** One sample: its text, its counts for the penalties, its times. */
export class LiveSample {
  readonly index: number;
  readonly params: SamplingParams;
  readonly penalties: Penalties | undefined;
  /** The token or text that ended the sample. */
  stopReason: string | number | undefined;
  readonly #output: OutputText;
  #numTokens = 0;
  #firstTokenAt = 0;

  constructor(index: number, params: SamplingParams, promptTokens: Int32Array, output: OutputText) {
    this.index = index;
    this.params = params;
    this.penalties = Penalties.areNeeded(params) ? new Penalties(params, promptTokens) : undefined;
    this.#output = output;
  }

  /** Takes the next token; afterwards `stopReason` says whether it ends the sample. A stop token has no text. */
  accept(tokenId: number): void {
    this.penalties?.addOutput(tokenId);
    if (this.params.stopTokens.has(tokenId)) {
      this.stopReason = tokenId;
      return;
    }
    this.#output.push(tokenId);
    this.stopReason = this.#output.stop;
  }

  /** The chunk for what a step brought. `now`: seconds since the request came. */
  take(output: StepOutput, usage: Omit<Usage, "completionTokens">, now: number): GenerateChunk {
    const { token, finishReason } = output;
    if (token !== undefined && this.#numTokens++ === 0) this.#firstTokenAt = now;
    const sinceFirst = now - this.#firstTokenAt;
    return {
      index: this.index,
      text: finishReason === undefined ? this.#output.take() : this.#output.finish(),
      tokenIds: token === undefined ? [] : [token.tokenId],
      ...(token?.logprobs === undefined ? {} : { logprobs: [token.logprobs] }),
      ...(finishReason === undefined || finishReason === "error" ? {} : { finishReason }),
      ...(this.stopReason === undefined ? {} : { stopReason: this.stopReason }),
      usage: { ...usage, completionTokens: this.#numTokens },
      timing: {
        firstTokenSeconds: this.#firstTokenAt,
        elapsedSeconds: now,
        tokensPerSecond: sinceFirst > 0 ? (this.#numTokens - 1) / sinceFirst : 0,
      },
    };
  }
}

/** A request under way: turns what the core says of its samples into chunks for the caller. */
export class LiveRequest {
  /** The handle's number for it. */
  readonly id: number;
  readonly samples: readonly LiveSample[];
  readonly #numPromptTokens: number;
  readonly #startedAt = performance.now();
  /** Entry i belongs to token i of the prompt; they come in parts while the prompt is computed. */
  #promptLogprobs: (Logprobs | undefined)[] | undefined;
  #numUnfinished: number;

  constructor(id: number, numPromptTokens: number, samples: readonly LiveSample[]) {
    this.id = id;
    this.samples = samples;
    this.#numPromptTokens = numPromptTokens;
    this.#numUnfinished = samples.length;
    if (samples[0].params.promptLogprobs !== undefined) this.#promptLogprobs = [undefined];
  }

  get isFinished(): boolean {
    return this.#numUnfinished === 0;
  }

  /** The chunk for what a step brought, if it is worth one: log-probabilities of the prompt wait for the first token. */
  take(output: StepOutput): GenerateChunk | undefined {
    this.#promptLogprobs?.push(...(output.promptLogprobs ?? []));
    if (output.token === undefined && output.finishReason === undefined) return undefined;
    if (output.finishReason !== undefined) this.#numUnfinished--;
    const usage = { promptTokens: this.#numPromptTokens, cachedTokens: output.numCachedTokens };
    const chunk = this.samples[output.sampleIndex].take(output, usage, (performance.now() - this.#startedAt) / 1000);
    const promptLogprobs = this.#promptLogprobs;
    if (promptLogprobs === undefined) return chunk;
    this.#promptLogprobs = undefined;
    return { ...chunk, promptLogprobs };
  }
}

/** A conversation's answer begins a text; what follows any other prompt continues one, and keeps its leading space. */
export function outputText(tokenizer: EngineTokenizer, stops: readonly string[], isContinuation: boolean): OutputText {
  return new OutputText(tokenizer.incrementalDecoder({ skipSpecialTokens: true, isContinuation }), stops);
}
