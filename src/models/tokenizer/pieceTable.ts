/**
 * The pieces of a vocabulary in typed arrays, found by their bytes: 262,144 of them take 9 MB instead of the hundreds that a Map of
 * strings would. Scores, merging and token types are not its matter.
 */

import { SPACE } from "./bytes.ts";

/** Strings by index, as a file format holds them; a plain array of strings is one. */
export interface StringArray {
  readonly length: number;
  at(index: number): string | undefined;
  /** The bytes in the file: exact where they are no valid UTF-8, and no string need be made. */
  bytesAt?(index: number): Uint8Array;
}

const EMPTY = -1;

/** Pieces by number and, those that can be found, by their bytes. */
export class PieceTable {
  readonly length: number;
  /** The length in bytes of the longest piece that can be found. */
  longest = 0;
  /** 1 for each byte that stands right before a space in some piece that can be found. */
  readonly joinsSpace = new Uint8Array(256);
  readonly #bytes: Uint8Array;
  /** Piece i is bytes[offsets[i] .. offsets[i + 1]). */
  readonly #offsets: Int32Array;
  /** Open addressing with linear probing: piece numbers or EMPTY, at most half full. */
  readonly #slots: Int32Array;
  readonly #mask: number;

  constructor(bytes: Uint8Array, offsets: Int32Array) {
    this.length = offsets.length - 1;
    this.#bytes = bytes;
    this.#offsets = offsets;
    let numSlots = 16;
    while (numSlots < 2 * this.length) numSlots *= 2;
    this.#slots = new Int32Array(numSlots).fill(EMPTY);
    this.#mask = numSlots - 1;
  }

  /** The bytes of piece `index` (a view). */
  bytesAt(index: number): Uint8Array {
    return this.#bytes.subarray(this.#offsets[index], this.#offsets[index + 1]);
  }

  /** Makes piece `index` findable, unless an equal one is. */
  enter(index: number): void {
    const begin = this.#offsets[index];
    const end = this.#offsets[index + 1];
    const slot = this.#slot(this.#bytes, begin, end);
    if (this.#slots[slot] !== EMPTY) return;
    this.#slots[slot] = index;
    this.longest = Math.max(this.longest, end - begin);
    for (let i = begin + 1; i < end; i++) if (this.#bytes[i] === SPACE) this.joinsSpace[this.#bytes[i - 1]] = 1;
  }

  /** The entered piece that equals bytes[begin..end), or -1. */
  find(bytes: Uint8Array, begin: number, end: number): number {
    return end - begin > this.longest ? -1 : this.#slots[this.#slot(bytes, begin, end)];
  }

  /** The slot that holds this piece, or the empty one where it would go. */
  #slot(bytes: Uint8Array, begin: number, end: number): number {
    const offsets = this.#offsets;
    const length = end - begin;
    let slot = hash(bytes, begin, end) & this.#mask;
    for (; ; slot = (slot + 1) & this.#mask) {
      const piece = this.#slots[slot];
      if (piece === EMPTY) return slot;
      let at = offsets[piece];
      if (offsets[piece + 1] - at !== length) continue;
      let i = begin;
      while (i < end && this.#bytes[at] === bytes[i]) {
        i++;
        at++;
      }
      if (i === end) return slot;
    }
  }
}

/** FNV-1a with a final mix, as the low bits choose the slot. */
function hash(bytes: Uint8Array, begin: number, end: number): number {
  let h = 0x811c9dc5;
  for (let i = begin; i < end; i++) h = Math.imul(h ^ bytes[i], 0x01000193);
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return h ^ (h >>> 13);
}

/** Collects pieces into the arrays of a PieceTable. */
export class PieceTableBuilder {
  readonly #offsets: Int32Array;
  #bytes: Uint8Array;
  #count = 0;
  #numBytes = 0;

  constructor(numPieces: number) {
    this.#offsets = new Int32Array(numPieces + 1);
    this.#bytes = new Uint8Array(Math.max(64, numPieces * 8));
  }

  /** Appends a piece; with `marksSpaces`, U+2581 in it (E2 96 81) becomes a plain space. */
  add(piece: Uint8Array, marksSpaces: boolean): void {
    if (this.#numBytes + piece.length > this.#bytes.length) {
      const larger = new Uint8Array(2 * (this.#numBytes + piece.length));
      larger.set(this.#bytes.subarray(0, this.#numBytes));
      this.#bytes = larger;
    }
    const bytes = this.#bytes;
    let to = this.#numBytes;
    for (let from = 0; from < piece.length; from++) {
      const byte = piece[from];
      if (marksSpaces && byte === 0xe2 && piece[from + 1] === 0x96 && piece[from + 2] === 0x81) {
        bytes[to++] = SPACE;
        from += 2;
      } else bytes[to++] = byte;
    }
    this.#numBytes = to;
    this.#offsets[++this.#count] = to;
  }

  /** The table, with no piece entered yet. */
  finish(): PieceTable {
    return new PieceTable(this.#bytes.slice(0, this.#numBytes), this.#offsets);
  }
}
