/**
 * Splits a command's words into MODEL and what follows it. MODEL may be left out, so the first word counts as one only if it can be one.
 */

import { isModelName } from "./modelNames.ts";

/** MODEL, undefined when none was named, and the words after it. */
export interface ModelWords {
  readonly model: string | undefined;
  readonly rest: readonly string[];
}

/** `option` is the value of `--model`, which settles the question. */
export function splitModel(words: readonly string[], option: string | undefined): ModelWords {
  if (option !== undefined) return { model: option, rest: words };
  const [first, ...rest] = words;
  return first !== undefined && isModelName(first) ? { model: first, rest } : { model: undefined, rest: words };
}
