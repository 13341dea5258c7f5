/** Perplexity: how well a model predicts a given text, window by window. */

import { ArgumentError } from "../tensor/errors.ts";
import type { TokenizeOptions } from "./messages.ts";
import type { Completion, Evaluation, GenerateRequest, ModelDescription, Prompt } from "./types.ts";

export interface EvaluateOptions {
  /** Tokens predicted per window; each window starts without memory of those before. Default 512, or the model's context if shorter. */
  readonly window?: number;
  readonly signal?: AbortSignal;
  /** Called after each window. */
  readonly onProgress?: (progress: {
    readonly numPredicted: number;
    readonly numTokens: number;
    readonly meanNll: number;
  }) => void;
}

/** The part of the engine that this needs. */
export interface Scorer {
  tokenize(prompt: Prompt, options: TokenizeOptions): Promise<number[]>;
  complete(request: GenerateRequest): Promise<Completion>;
  describe(): ModelDescription;
}

/** Windows computed at a time: enough to fill the engine's steps. */
const NUM_CONCURRENT = 4;

/**
 * Every token of the text but the first is predicted once, from the tokens of its window before it: window i holds the tokens from
 * i * window to (i + 1) * window, the last of them being the next window's first. The text is tokenised as a prompt, control tokens in
 * it included. Throws ArgumentError when it has fewer than two tokens.
 */
export async function evaluateText(engine: Scorer, text: string, options: EvaluateOptions = {}): Promise<Evaluation> {
  const startedAt = performance.now();
  const { contextLength } = engine.describe();
  const window = options.window ?? Math.min(512, contextLength - 1);
  if (!Number.isInteger(window) || window < 1 || window >= contextLength) {
    throw new ArgumentError(
      `window = ${window} must be an integer from 1 to ${contextLength - 1}: the model's context holds one token more`,
    );
  }
  const tokens = await engine.tokenize(text, { parseSpecialTokens: true });
  if (tokens.length < 2)
    throw new ArgumentError(`text has ${tokens.length} tokens: at least two are needed, one to predict the next`);

  const starts = Array.from({ length: Math.ceil((tokens.length - 1) / window) }, (_, i) => i * window);
  const nllOfWindow = new Float64Array(starts.length);
  let numPredicted = 0;
  let next = 0;
  const worker = async () => {
    while (next < starts.length) {
      const at = next++;
      const prompt = tokens.slice(starts[at], starts[at] + window + 1);
      const { signal } = options;
      const { promptLogprobs = [] } = await engine.complete({
        prompt,
        maxTokens: 0,
        promptLogprobs: 0,
        ...(signal ? { signal } : {}),
      });
      for (const entry of promptLogprobs) if (entry !== undefined) nllOfWindow[at] -= entry.logprob;
      numPredicted += prompt.length - 1;
      options.onProgress?.({ numPredicted, numTokens: tokens.length, meanNll: sum(nllOfWindow) / numPredicted });
    }
  };
  await Promise.all(Array.from({ length: NUM_CONCURRENT }, worker));

  const numBytes = new TextEncoder().encode(text).length;
  const nll = sum(nllOfWindow);
  const meanNll = nll / numPredicted;
  return {
    numTokens: tokens.length,
    numPredicted,
    numBytes,
    meanNll,
    perplexity: Math.exp(meanNll),
    bitsPerByte: (meanNll * tokens.length) / (Math.LN2 * numBytes),
    seconds: (performance.now() - startedAt) / 1000,
  };
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}
