/** Fills in and checks what a request says about sampling. */

import { ArgumentError } from "../tensor/errors.ts";
import { randomSeed } from "./random.ts";
import type { GenerateRequest, SamplingParams } from "./types.ts";

/** The model's side of the matter. */
export interface SamplingModel {
  readonly vocabSize: number;
  readonly eosTokenIds: readonly number[];
}

/** Throws ArgumentError naming the field, its value and what would be right. */
export function resolveSampling(request: GenerateRequest, { vocabSize, eosTokenIds }: SamplingModel): SamplingParams {
  const isToken = (value: number) => Number.isInteger(value) && value >= 0 && value < vocabSize;
  const tokens = `a token number from 0 to ${vocabSize - 1}`;
  const count = `an integer from 0 to ${vocabSize}`;
  const isCount = (value: number) => Number.isInteger(value) && value >= 0 && value <= vocabSize;

  const logitBias = Object.entries(request.logitBias ?? {}).map(([key, bias]) => {
    if (!isToken(Number(key))) throw new ArgumentError(`logitBias key = ${key} must be ${tokens}`);
    const isBias = (value: number) => value < Number.POSITIVE_INFINITY;
    return {
      tokenId: Number(key),
      bias: check(`logitBias[${key}]`, bias, isBias, "a finite number or -Infinity"),
    };
  });
  for (const token of request.stopTokens ?? []) check("stopTokens entry", token, isToken, tokens);
  return {
    temperature: check(
      "temperature",
      request.temperature ?? 0,
      (value) => Number.isFinite(value) && value >= 0,
      "at least 0 and finite",
    ),
    // More than there are keeps all, as in every peer.
    topK: check(
      "topK",
      request.topK ?? 0,
      (value) => Number.isSafeInteger(value) && value >= 0,
      "an integer of at least 0 (0 keeps all)",
    ),
    topP: check("topP", request.topP ?? 1, (value) => value >= 0 && value <= 1, "from 0 to 1"),
    minP: check("minP", request.minP ?? 0, (value) => value >= 0 && value <= 1, "from 0 to 1"),
    repetitionPenalty: check(
      "repetitionPenalty",
      request.repetitionPenalty ?? 1,
      (value) => Number.isFinite(value) && value > 0,
      "above 0 and finite",
    ),
    presencePenalty: check("presencePenalty", request.presencePenalty ?? 0, Number.isFinite, "finite"),
    frequencyPenalty: check("frequencyPenalty", request.frequencyPenalty ?? 0, Number.isFinite, "finite"),
    logitBias,
    seed: check(
      "seed",
      request.seed ?? randomSeed(),
      (value) => Number.isSafeInteger(value) && value >= 0,
      "an integer from 0 to 2^53 - 1",
    ),
    stopTokens: new Set([...(request.stopTokens ?? []), ...(request.ignoreEos === true ? [] : eosTokenIds)]),
    logprobs: request.logprobs === undefined ? undefined : check("logprobs", request.logprobs, isCount, count),
    promptLogprobs:
      request.promptLogprobs === undefined
        ? undefined
        : check("promptLogprobs", request.promptLogprobs, isCount, count),
  };
}

function check(name: string, value: number, isRight: (value: number) => boolean, right: string): number {
  if (typeof value !== "number" || !isRight(value))
    throw new ArgumentError(
      `${name} = ${typeof value === "string" ? JSON.stringify(value) : String(value)} must be ${right}`,
    );
  return value;
}
