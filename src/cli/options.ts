/**
 * The options that several commands share, and reading them: every value is checked here, so that a command gets numbers or a
 * UsageError that names the option. What the values mean is the engine's.
 */

import type { ArgsDef } from "citty";
import type { GenerateRequest, LoadOptions } from "../engine/types.ts";
import { UsageError } from "./exit.ts";

/** What citty parsed: `_` holds the words that belong to no option. */
export type ParsedOptions = Readonly<Record<string, unknown>> & { readonly _: readonly string[] };

/** Options of every command that loads a model. */
export const loadOptions = {
  device: { type: "enum", options: ["auto", "cpu"], description: "where the network runs", default: "auto" },
  threads: { type: "string", description: "threads of the CPU device (default: one for each core)", valueHint: "n" },
  "max-num-tokens": {
    type: "string",
    description: "tokens that the key/value cache holds, over all requests",
    valueHint: "n",
  },
  "page-size": { type: "string", description: "tokens in a cache page", valueHint: "n" },
  "cache-type": { type: "enum", options: ["f16", "f32"], description: "element type of the cache" },
  activations: {
    type: "enum",
    options: ["int8", "int16", "f32"],
    description: "what quantised weights are multiplied with",
  },
} as const satisfies ArgsDef;

/** Options of every command that generates text. */
export const samplingOptions = {
  "max-tokens": { type: "string", description: "most tokens to generate", valueHint: "n" },
  temperature: {
    type: "string",
    description: "divides the logits; 0 takes the most likely token (default 0.8)",
    valueHint: "t",
    alias: "t",
  },
  "top-k": { type: "string", description: "keep the k most likely tokens; 0 keeps all", valueHint: "k" },
  "top-p": {
    type: "string",
    description: "keep the likeliest tokens up to this probability (default 0.95)",
    valueHint: "p",
  },
  "min-p": { type: "string", description: "drop tokens less likely than this times the likeliest", valueHint: "p" },
  "repetition-penalty": { type: "string", description: "divides the logits of tokens seen before", valueHint: "x" },
  "presence-penalty": { type: "string", description: "subtracted from tokens generated before", valueHint: "x" },
  "frequency-penalty": {
    type: "string",
    description: "subtracted once for each time a token was generated",
    valueHint: "x",
  },
  seed: { type: "string", description: "the same seed gives the same text", valueHint: "n", alias: "s" },
  stop: { type: "string", description: "text that ends the generation", valueHint: "text" },
} as const satisfies ArgsDef;

/** The engine's load options among `args`. Throws UsageError naming the option. */
export function readLoadOptions(args: ParsedOptions): LoadOptions {
  return withoutUndefined({
    device: args.device as "auto" | "cpu" | undefined, // citty has checked the enums
    threads: readNumber(args, "threads", { least: 1, isInteger: true }),
    maxNumTokens: readNumber(args, "max-num-tokens", { least: 1, isInteger: true }),
    pageSize: readNumber(args, "page-size", { least: 1, isInteger: true }),
    cacheType: args["cache-type"] as "f16" | "f32" | undefined,
    activations: args.activations as "int8" | "int16" | "f32" | undefined,
  });
}

/**
 * The sampling options among `args`. The command line samples (temperature 0.8, top-p 0.95) where the API is greedy: a person at a
 * terminal wants a text, not a yardstick. Throws UsageError naming the option.
 */
export function readSampling(args: ParsedOptions): Omit<GenerateRequest, "prompt"> {
  return withoutUndefined({
    maxTokens: readNumber(args, "max-tokens", { least: 1, isInteger: true }),
    temperature: readNumber(args, "temperature", { least: 0 }) ?? 0.8,
    topK: readNumber(args, "top-k", { least: 0, isInteger: true }),
    topP: readNumber(args, "top-p", { least: 0, most: 1 }) ?? 0.95,
    minP: readNumber(args, "min-p", { least: 0, most: 1 }),
    repetitionPenalty: readNumber(args, "repetition-penalty", { least: 0 }),
    presencePenalty: readNumber(args, "presence-penalty", {}),
    frequencyPenalty: readNumber(args, "frequency-penalty", {}),
    seed: readNumber(args, "seed", { isInteger: true }),
    stop: args.stop as string | undefined,
  });
}

/** What a number has to be. */
interface NumberRule {
  readonly least?: number;
  readonly most?: number;
  readonly isInteger?: boolean;
}

/** The number given as `--name`, or undefined when it was not given. Throws UsageError when it is none, or out of range. */
export function readNumber(args: ParsedOptions, name: string, rule: NumberRule): number | undefined {
  const text = args[name];
  if (text === undefined) return undefined;
  const value = typeof text === "string" && text.trim() !== "" ? Number(text) : Number.NaN;
  const { least = -Infinity, most = Infinity, isInteger = false } = rule;
  if (Number.isFinite(value) && value >= least && value <= most && !(isInteger && !Number.isSafeInteger(value)))
    return value;
  const range = [least > -Infinity ? `at least ${least}` : "", most < Infinity ? `at most ${most}` : ""]
    .filter(Boolean)
    .join(" and ");
  const kind = isInteger ? "a whole number" : "a number";
  throw new UsageError(`--${name} must be ${kind}${range === "" ? "" : ` of ${range}`}, got "${String(text)}"`);
}

/** Throws UsageError when `args` has an option that `known` does not define. */
export function refuseUnknownOptions(args: ParsedOptions, known: ArgsDef): void {
  const names = new Set(["_", "help", "h"]);
  for (const [name, { type, ...rest }] of Object.entries(known)) {
    const aliases = "alias" in rest && rest.alias !== undefined ? [rest.alias].flat() : [];
    for (const each of [name, ...aliases])
      names.add(each).add(each.replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase()));
    if ((type === "string" || type === "enum") && args[name] === "") throw new UsageError(`--${name} needs a value`);
  }
  for (const name of Object.keys(args)) {
    if (!names.has(name)) throw new UsageError(`unknown option ${name.length === 1 ? "-" : "--"}${name}`);
  }
}

/** `fields` without the undefined ones: what was not asked for stays the engine's default. */
function withoutUndefined<T extends object>(fields: T): { [Name in keyof T]: Exclude<T[Name], undefined> } {
  const entries = Object.entries(fields).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [Name in keyof T]: Exclude<T[Name], undefined> }; // the engine reads a missing field as its default
}
