/** Ids to text while they are being generated: gives out only whole characters. Stop strings are the engine's matter. */

import { SPACE } from "./bytes.ts";
import type { DecodeOptions, Tokenizer } from "./tokenizer.ts";
import { Utf8Decoder } from "./utf8Decoder.ts";

/** The parts of a tokenizer that decoding needs. */
export type DecodableVocabulary = Pick<
  Tokenizer,
  "tokenBytes" | "isSpecial" | "isByteToken" | "leadingSpace" | "invalidBytes"
>;

/** What all `push` calls and the final `flush` return, joined, equals `decode` of all ids with the same options. */
export class IncrementalDecoder {
  readonly #vocabulary: DecodableVocabulary;
  readonly #skipSpecialTokens: boolean;
  readonly #utf8: Utf8Decoder;
  /** No text so far, and a space now would be the one that encoding had put in front. */
  #dropsSpace: boolean;

  constructor(vocabulary: DecodableVocabulary, options: DecodeOptions = {}) {
    this.#vocabulary = vocabulary;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? false;
    this.#utf8 = new Utf8Decoder(vocabulary.invalidBytes);
    this.#dropsSpace = vocabulary.leadingSpace !== "keep" && !(options.isContinuation ?? false);
  }

  /** The text that is certain after these ids: a character whose last bytes are still to come is held back. */
  push(ids: ArrayLike<number> | number): string {
    if (typeof ids === "number") return this.#pushToken(ids);
    let text = "";
    for (let i = 0; i < ids.length; i++) text += this.#pushToken(ids[i]);
    return text;
  }

  /** Ends the text: U+FFFD for what was held back. */
  flush(): string {
    return this.#utf8.flush();
  }

  #pushToken(id: number): string {
    let bytes = this.#vocabulary.tokenBytes(id);
    if (this.#vocabulary.isSpecial(id)) {
      if (this.#skipSpecialTokens) return "";
      if (this.#vocabulary.leadingSpace === "dropAtStart") this.#dropsSpace = false;
    } else if (this.#dropsSpace && bytes.length > 0) {
      if (bytes[0] === SPACE) bytes = bytes.subarray(1);
      this.#dropsSpace = false;
    }
    return this.#utf8.push(bytes, this.#vocabulary.isByteToken(id));
  }
}
