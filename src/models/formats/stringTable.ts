/**
 * Many strings in two typed arrays: a vocabulary of 262,144 entries takes 3 MB instead of some 15 MB of string objects, and none is decoded
 * until it is asked for.
 */

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Strings by index, stored as UTF-8. */
export class StringTable {
  readonly length: number;
  readonly #bytes: Uint8Array;
  /** String i is bytes [offsets[i], offsets[i + 1]). */
  readonly #offsets: Uint32Array;

  /** `offsets` has one entry more than there are strings. */
  constructor(bytes: Uint8Array, offsets: Uint32Array) {
    this.length = offsets.length - 1;
    this.#bytes = bytes;
    this.#offsets = offsets;
  }

  /** String `index`, or undefined outside of 0 to length - 1. Invalid UTF-8 becomes replacement characters. */
  at(index: number): string | undefined {
    return index >= 0 && index < this.length ? decoder.decode(this.bytesAt(index)) : undefined;
  }

  /** The bytes of string `index`, a view. */
  bytesAt(index: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[index], this.#offsets[index + 1]);
  }

  *[Symbol.iterator](): Generator<string> {
    for (let i = 0; i < this.length; i++) yield decoder.decode(this.bytesAt(i));
  }
}

/** Collects strings for a StringTable whose length is known in advance. */
export class StringTableBuilder {
  readonly #offsets: Uint32Array;
  #bytes = new Uint8Array(4096);
  #numStrings = 0;

  constructor(length: number) {
    this.#offsets = new Uint32Array(length + 1);
  }

  /** Bytes collected so far. */
  get numBytes(): number {
    return this.#offsets[this.#numStrings];
  }

  /**
   * Appends the strings, at most `maxStrings`, that lie whole at the beginning of `chunk`, each behind its length in 64 bits; says how many
   * there were and how many bytes they took with their lengths.
   */
  addPrefixed(chunk: Uint8Array, maxStrings: number): { numStrings: number; numBytes: number } {
    const view = new DataView(chunk.buffer, chunk.byteOffset, chunk.length);
    this.#reserve(chunk.length);
    let at = 0;
    let numStrings = 0;
    let to = this.numBytes;
    while (numStrings < maxStrings && at + 8 <= chunk.length) {
      const end = at + 8 + view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
      if (end > chunk.length) break;
      // A loop, since most strings are shorter than what a call costs.
      for (let from = at + 8; from < end; from++) this.#bytes[to++] = chunk[from];
      this.#offsets[++this.#numStrings] = to;
      numStrings++;
      at = end;
    }
    return { numStrings, numBytes: at };
  }

  #reserve(numBytes: number): void {
    const needed = this.numBytes + numBytes;
    if (needed <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(needed, 2 * this.#bytes.length));
    grown.set(this.#bytes.subarray(0, this.numBytes));
    this.#bytes = grown;
  }

  /** The table of what was added; as many strings as were announced must have been. */
  finish(): StringTable {
    return new StringTable(this.#bytes.slice(0, this.numBytes), this.#offsets);
  }
}
