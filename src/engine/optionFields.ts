/**
 * Checks the options of a request and of a load for what no type checker has seen: names that do not exist, and values of the wrong kind
 * that would otherwise pass for something else. Ranges of numbers are checked where the numbers are used.
 */

import { ArgumentError } from "../tensor/errors.ts";
import type { PlainLoadOptions, PlainRequest } from "./messages.ts";

interface Kind {
  readonly words: string;
  has(value: unknown): boolean;
}

const TEXT: Kind = { words: "a string", has: (value) => typeof value === "string" };
const FLAG: Kind = { words: "true or false", has: (value) => typeof value === "boolean" };
const NUMBERS: Kind = { words: "an array of token numbers", has: Array.isArray };
const FIELDS: Kind = {
  words: "an object",
  has: (value) => typeof value === "object" && value !== null && !Array.isArray(value),
};
const TEXTS: Kind = {
  words: "a string or an array of strings",
  has: (value) => TEXT.has(value) || (Array.isArray(value) && value.every(TEXT.has)),
};
/** Checked elsewhere. */
const ANY: Kind = { words: "anything", has: () => true };

const REQUEST_FIELDS: Readonly<Record<keyof PlainRequest, Kind>> = {
  prompt: ANY,
  maxTokens: ANY,
  n: ANY,
  stop: TEXTS,
  stopTokens: NUMBERS,
  ignoreEos: FLAG,
  logprobs: ANY,
  promptLogprobs: ANY,
  cacheSalt: TEXT,
  parseSpecialTokens: FLAG,
  templateVariables: FIELDS,
  temperature: ANY,
  topK: ANY,
  topP: ANY,
  minP: ANY,
  repetitionPenalty: ANY,
  presencePenalty: ANY,
  frequencyPenalty: ANY,
  logitBias: FIELDS,
  seed: ANY,
};

const LOAD_FIELDS: Readonly<Record<keyof PlainLoadOptions, Kind>> = {
  device: ANY,
  threads: ANY,
  maxNumTokens: ANY,
  pageSize: ANY,
  cacheType: ANY,
  activations: ANY,
  maxNumBatchedTokens: ANY,
  maxNumSeqs: ANY,
};

/** Throws ArgumentError for a field that requests do not have, or whose value is of another kind. */
export function checkRequestFields(request: PlainRequest): void {
  checkFields("a request", request, REQUEST_FIELDS);
}

/** The same for the options of a load. */
export function checkLoadFields(options: PlainLoadOptions): void {
  checkFields("loading", options, LOAD_FIELDS);
}

/** The same in the caller's thread, for what cannot be sent: that it is a request at all, and its signal. */
export function checkRequest(request: unknown): void {
  if (!FIELDS.has(request)) {
    throw new ArgumentError(`request = ${JSON.stringify(request)} must be an object with a prompt`);
  }
  if (request instanceof Object && "signal" in request) checkSignal(request.signal);
}

/** Throws ArgumentError for what is no AbortSignal. One of another realm, or a library's own, will do. */
export function checkSignal(signal: unknown): void {
  if (signal === undefined || (signal instanceof Object && "aborted" in signal && "addEventListener" in signal)) return;
  throw new ArgumentError(`signal = ${JSON.stringify(signal)} must be an AbortSignal`);
}

function checkFields(owner: string, given: object, fields: Readonly<Record<string, Kind>>): void {
  for (const [name, value] of Object.entries(given)) {
    if (!Object.hasOwn(fields, name))
      throw new ArgumentError(`${name} is not an option of ${owner}: there are ${Object.keys(fields).join(", ")}`);
    if (value === undefined || fields[name].has(value)) continue;
    throw new ArgumentError(`${name} = ${JSON.stringify(value)} must be ${fields[name].words}`);
  }
}
