/** Bytes to text, piece by piece: holds back an unfinished UTF-8 sequence and replaces invalid bytes. Knows nothing of tokens. */

import { NO_BYTES } from "./bytes.ts";

/** How many U+FFFD stand for invalid bytes. */
export type InvalidBytes =
  /** One for each invalid byte: sentencepiece. */
  | "perByte"
  /** One for the longest start of a valid sequence: the WHATWG rule, by which byte-level tokenizers decode. */
  | "perSequence"
  /**
   * One for each byte of a run of byte tokens, valid or not, if any byte of the run is invalid: the `ByteFallback` step of
   * tokenizer.json. A run has to be complete before any of it can be given out.
   */
  | "perRun";

const REPLACEMENT = "\ufffd";

/** A streaming UTF-8 decoder. A byte order mark is text like any other. */
export class Utf8Decoder {
  readonly #invalid: InvalidBytes;
  readonly #valid = new TextDecoder("utf-8", { ignoreBOM: true });
  #pending: Uint8Array = NO_BYTES;

  constructor(invalid: InvalidBytes) {
    this.#invalid = invalid;
  }

  /** The text that these bytes make certain. `isByteToken`: they are a byte token and belong to a run. */
  push(bytes: Uint8Array, isByteToken: boolean): string {
    if (bytes.length === 0) return "";
    if (this.#invalid !== "perRun") return this.#pushBytes(bytes);
    if (!isByteToken) return this.flush() + this.#pushBytes(bytes);
    this.#pending = concatenate(this.#pending, bytes);
    return "";
  }

  /** Ends the text: what was held back can no longer become a character. */
  flush(): string {
    const run = this.#pending;
    this.#pending = NO_BYTES;
    if (run.length === 0) return "";
    return this.#invalid === "perRun" && isValid(run) ? this.#valid.decode(run) : this.#replacement(run.length);
  }

  #pushBytes(bytes: Uint8Array): string {
    const joined = this.#pending.length === 0 ? bytes : concatenate(this.#pending, bytes);
    let text = "";
    let spanStart = 0;
    let at = 0;
    while (at < joined.length) {
      const length = sequenceLength(joined, at);
      if (length === UNFINISHED) break;
      if (length < 0) {
        text += this.#valid.decode(joined.subarray(spanStart, at)) + this.#replacement(-length);
        at -= length;
        spanStart = at;
      } else at += length;
    }
    text += this.#valid.decode(joined.subarray(spanStart, at));
    this.#pending = joined.slice(at);
    return text;
  }

  #replacement(numBytes: number): string {
    return this.#invalid === "perSequence" ? REPLACEMENT : REPLACEMENT.repeat(numBytes);
  }
}

function isValid(bytes: Uint8Array): boolean {
  let at = 0;
  while (at < bytes.length) {
    const length = sequenceLength(bytes, at);
    if (length <= 0) return false;
    at += length;
  }
  return true;
}

const UNFINISHED = 0;

/** n: a valid sequence of n bytes; -n: n bytes that no continuation can make valid; 0: valid so far, but cut off. */
function sequenceLength(bytes: Uint8Array, at: number): number {
  const lead = bytes[at];
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return -1;
  const length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte is narrower after these leads: no overlong forms, no surrogates, nothing above U+10FFFF.
  const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
  const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
  for (let i = 1; i < length; i++) {
    if (at + i >= bytes.length) return UNFINISHED;
    const byte = bytes[at + i];
    if (i === 1 ? byte < low || byte > high : byte < 0x80 || byte > 0xbf) return -i;
  }
  return length;
}

function concatenate(a: Uint8Array, b: Uint8Array): Uint8Array {
  const joined = new Uint8Array(a.length + b.length);
  joined.set(a);
  joined.set(b, a.length);
  return joined;
}
