/**
 * Finds stop strings in text that arrives in pieces, holding back only what may still become one. Of several, the one that is complete
 * first ends the text, and of those complete at the same character the longest: how the text was cut into pieces makes no difference.
 */

import { ArgumentError } from "../tensor/errors.ts";

/** The stop strings of one sample. Throws ArgumentError for an empty one. */
export class StopStrings {
  readonly #stops: readonly { readonly text: string; readonly fallback: Int32Array }[];
  /** For each stop string, how many of its characters the text so far ends with. */
  readonly #matched: Int32Array;
  /** Text that may still become part of a stop string. */
  #held = "";
  #found: string | undefined;

  constructor(stops: readonly string[]) {
    const empty = stops.indexOf("");
    if (empty >= 0) throw new ArgumentError(`stop[${empty}] = "" must have at least one character`);
    this.#stops = stops.map((text) => ({ text, fallback: fallbackTable(text) }));
    this.#matched = new Int32Array(stops.length);
  }

  /** The stop string that was found; the text ends before it and nothing more is to be pushed. */
  get found(): string | undefined {
    return this.#found;
  }

  /** Takes a piece of text and returns what is now certain to belong to the result. */
  push(piece: string): string {
    if (this.#stops.length === 0) return piece;
    const text = this.#held + piece;
    for (let i = this.#held.length; i < text.length; i++) {
      const found = this.#advance(text[i]);
      if (found !== undefined) {
        this.#found = found;
        this.#held = "";
        return text.slice(0, i + 1 - found.length);
      }
    }
    const certain = text.length - Math.max(...this.#matched);
    this.#held = text.slice(certain);
    return text.slice(0, certain);
  }

  /** What was held back; call it when no more text will come. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    this.#matched.fill(0);
    return held;
  }

  /** One character further, by Knuth, Morris and Pratt; the longest stop string that it completes. */
  #advance(character: string): string | undefined {
    let found: string | undefined;
    for (let s = 0; s < this.#stops.length; s++) {
      const { text, fallback } = this.#stops[s];
      let matched = this.#matched[s];
      while (matched > 0 && text[matched] !== character) matched = fallback[matched - 1];
      if (text[matched] === character) matched++;
      this.#matched[s] = matched;
      if (matched === text.length && text.length > (found?.length ?? 0)) found = text;
    }
    return found;
  }
}

/** fallback[i]: length of the longest proper prefix of the text that is also a suffix of its first i + 1 characters. */
function fallbackTable(text: string): Int32Array {
  const fallback = new Int32Array(text.length);
  for (let i = 1, matched = 0; i < text.length; i++) {
    while (matched > 0 && text[matched] !== text[i]) matched = fallback[matched - 1];
    if (text[matched] === text[i]) matched++;
    fallback[i] = matched;
  }
  return fallback;
}
