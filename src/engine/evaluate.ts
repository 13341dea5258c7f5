/** Perplexity: how well a model predicts a given text, window by window. */

import { ArgumentError } from "../tensor/errors.ts";
import type { TokenizeOptions } from "./messages.ts";
import type { Completion, Evaluation, GenerateRequest, ModelDescription, Prompt } from "./types.ts";

/** How a text is cut for its evaluation, and how to follow and end that. */
export interface EvaluateOptions {
  /** Tokens predicted per window; each window starts without memory of those before. Default 512, or the model's context if shorter. */
  readonly window?: number;
  /** Ends the evaluation, which then rejects with the signal's reason. */
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

const DOCUMENT_END = /(?<=^|\n)<\|endoftext\|>(?:\r?\n|$)/;

/** Windows computed at a time: enough to fill the engine's steps. */
const NUM_CONCURRENT = 4;

/**
 * A line that holds only `<|endoftext|>` ends a document; each document gets the model's special tokens, and they follow each other
 * without a gap. Every token is predicted once from those before it in its window; what is left after the last whole window is not scored
 * (unless the text is shorter than one), so that all predictions see the same lengths of context. The first of a window is predicted from the begin token,
 * as in llama.cpp; where the model has none, or one that is its end token too and so only separates documents, from the token before it.
 * Throws ArgumentError when there is nothing to predict.
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
  const documents = text.split(DOCUMENT_END).filter((document) => document !== "");
  const tokens = (await Promise.all(documents.map((document) => engine.tokenize(document, {})))).flat();
  if (tokens.length < 2) {
    throw new ArgumentError(`text has ${tokens.length} tokens: at least two are needed, one to predict the next`);
  }

  const windows = cutWindows(tokens, window, await beginToken(engine));
  const nllOfWindow = new Float64Array(windows.length);
  let numPredicted = 0;
  let next = 0;
  const takeWindows = async () => {
    while (next < windows.length) {
      const at = next++;
      const request = { prompt: windows[at], maxTokens: 0, promptLogprobs: 0 };
      const { promptLogprobs = [] } = await engine.complete(
        options.signal ? { ...request, signal: options.signal } : request,
      );
      for (const entry of promptLogprobs) if (entry !== undefined) nllOfWindow[at] -= entry.logprob;
      numPredicted += windows[at].length - 1;
      options.onProgress?.({ numPredicted, numTokens: tokens.length, meanNll: sum(nllOfWindow) / numPredicted });
    }
  };
  await Promise.all(Array.from({ length: NUM_CONCURRENT }, takeWindows));

  const numBytes = new TextEncoder().encode(text).length;
  const meanNll = sum(nllOfWindow) / numPredicted;
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

/** The token that begins every text, where the model has one for that alone. */
async function beginToken(engine: Scorer): Promise<number | undefined> {
  const [begin] = await engine.tokenize("", {});
  return begin === undefined || engine.describe().eosTokenIds.includes(begin) ? undefined : begin;
}

/** Prompts whose tokens but the first are to be predicted, `window` of them each. */
function cutWindows(tokens: readonly number[], window: number, begin: number | undefined): number[][] {
  const prompts: number[][] = [];
  for (let start = 0; start + 1 < tokens.length; start += window) {
    if (begin === undefined) prompts.push(tokens.slice(start, start + window + 1));
    else if (tokens[start] === begin) prompts.push(tokens.slice(start, start + window));
    else prompts.push([begin, ...tokens.slice(start, start + window)]);
  }
  const isPartial = (prompts.at(-1)?.length ?? 0) <= window;
  return prompts.length > 1 && isPartial ? prompts.slice(0, -1) : prompts;
}

function sum(values: Float64Array): number {
  return values.reduce((total, value) => total + value, 0);
}
