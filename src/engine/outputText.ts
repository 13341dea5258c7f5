/** The text of one sample as its tokens arrive: detokenised piece by piece, cut at the first stop string. */

import { StopStrings } from "./stopStrings.ts";

/** Detokenises a stream: what ends within a character is held back. Implemented by the tokenizers of `models`. */
export interface StreamDecoder {
  push(tokenId: number): string;
  flush(): string;
}

/** The text of one sample as its tokens arrive, up to a stop string. Throws ArgumentError for an empty one. */
export class OutputText {
  readonly #decoder: StreamDecoder;
  readonly #stops: StopStrings;
  #ready = "";

  constructor(decoder: StreamDecoder, stops: readonly string[]) {
    this.#decoder = decoder;
    this.#stops = new StopStrings(stops);
  }

  /** The stop string that ended the text. */
  get stop(): string | undefined {
    return this.#stops.found;
  }

  push(tokenId: number): void {
    this.#ready += this.#stops.push(this.#decoder.push(tokenId));
  }

  /** Text since the last call. */
  take(): string {
    const text = this.#ready;
    this.#ready = "";
    return text;
  }

  /** The same at the end of the sample, with what was held back. */
  finish(): string {
    if (this.stop === undefined) this.#ready += this.#stops.push(this.#decoder.flush());
    if (this.stop === undefined) this.#ready += this.#stops.flush();
    return this.take();
  }
}
