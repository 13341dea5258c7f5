/**
 * BPE vocabularies that list which pairs merge, in order (the `BPE` model of tokenizer.json, the merges of a GGUF file), in typed arrays:
 * 280,000 merges take 10 MB and a fraction of a second. Cutting texts into words is not its matter.
 */

import { FormatError } from "../../tensor/errors.ts";
import { type PieceTable, PieceTableBuilder } from "./pieceTable.ts";
import { type MergeRule, SymbolMerger } from "./symbolMerger.ts";

/** The `model` of a tokenizer.json after JSON.parse, for type BPE. */
export interface PairMergesJson {
  readonly vocab: Readonly<Record<string, number>>;
  /** Each two pieces, as a pair or joined by a space. */
  readonly merges: readonly (string | readonly string[])[];
  readonly ignore_merges?: boolean | null;
  readonly byte_fallback?: boolean | null;
  readonly unk_token?: string | null;
  readonly fuse_unk?: boolean | null;
}

/** Ids are small numbers: a file that says otherwise must not make us allocate gigabytes. */
const MAX_VOCAB_SIZE = 2 ** 24;

type JsonField = keyof PairMergesJson | "type" | "dropout" | "continuing_subword_prefix" | "end_of_word_suffix";

/** Whether this is a BPE model without the rarer features (dropout, marks at the ends of words), which the library then runs. */
export function isPairMerges(model: object): model is PairMergesJson {
  const {
    type,
    dropout,
    continuing_subword_prefix,
    end_of_word_suffix,
    vocab,
    merges,
  }: Partial<Record<JsonField, unknown>> = model;
  const isPlain = !dropout && !continuing_subword_prefix && !end_of_word_suffix;
  return type === "BPE" && isPlain && typeof vocab === "object" && vocab !== null && Array.isArray(merges);
}

/** A BPE vocabulary, whatever file it is in. All texts are UTF-8. */
export interface PairMergesVocabulary {
  /** Ids are below this. */
  readonly vocabSize: number;
  /** The piece with this id as the file spells it, or undefined if there is none. */
  pieceAt(id: number): Uint8Array | undefined;
  readonly numMerges: number;
  /** The two pieces of a merge. Throws FormatError if it is none. */
  mergeAt(rank: number): readonly [left: Uint8Array, right: Uint8Array];
  /** A word that is a token is taken whole, whatever the merges say. */
  readonly ignoresMerges: boolean;
  /** Characters without a piece become the tokens <0x00> to <0xFF>, if those exist. */
  readonly hasByteFallback: boolean;
  /** Stands for a character that nothing else does. */
  readonly unknownPiece: string | undefined;
  /** A run of such characters is one unknown token. */
  readonly fusesUnknown: boolean;
}

/** The vocabulary of a tokenizer.json. `otherIds`: ids of tokens that are not among its pieces. Throws FormatError for an id that is none. */
export function jsonVocabulary(json: PairMergesJson, otherIds: Iterable<number>): PairMergesVocabulary {
  const pieces: (string | undefined)[] = [];
  let vocabSize = 0;
  const count = (id: number) => {
    if (!Number.isInteger(id) || id < 0 || id >= MAX_VOCAB_SIZE) {
      throw new FormatError(`tokenizer.json has a token with id ${id}`);
    }
    vocabSize = Math.max(vocabSize, id + 1);
  };
  for (const [piece, id] of Object.entries(json.vocab)) {
    count(id);
    pieces[id] = piece;
  }
  for (const id of otherIds) count(id);
  const encoder = new TextEncoder();
  return {
    vocabSize,
    pieceAt: (id) => (pieces[id] === undefined ? undefined : encoder.encode(pieces[id])),
    numMerges: json.merges.length,
    mergeAt(rank) {
      const merge = json.merges[rank];
      const [left, right, ...others] = typeof merge === "string" ? merge.split(" ") : merge;
      if (left === undefined || right === undefined || others.length > 0) {
        throw new FormatError(`Merge ${rank} is ${JSON.stringify(merge)}: a merge is two pieces`);
      }
      return [encoder.encode(left), encoder.encode(right)];
    },
    ignoresMerges: json.ignore_merges ?? false,
    hasByteFallback: json.byte_fallback ?? false,
    unknownPiece: json.unk_token ?? undefined,
    fusesUnknown: json.fuse_unk ?? false,
  };
}

/** Words to ids by merging pairs in the order of a list. */
export class PairMerges {
  readonly #pieces: PieceTable;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #merger: SymbolMerger;
  readonly #ignoresMerges: boolean;
  readonly #encoder = new TextEncoder();

  /** Throws FormatError for a merge of pieces that are no tokens. Keeps nothing of `vocabulary`. */
  constructor(vocabulary: PairMergesVocabulary) {
    this.#pieces = tableOf(vocabulary);
    this.#merger = new SymbolMerger(pairRule(vocabulary, this.#pieces));
    this.#ignoresMerges = vocabulary.ignoresMerges;
  }

  /** Ids are below this. */
  get vocabSize(): number {
    return this.#pieces.length;
  }

  /** The piece as spelled in the file; empty for an id without one. */
  pieceOf(id: number): string {
    return this.#decoder.decode(this.#pieces.bytesAt(id));
  }

  idOf(piece: string): number | undefined {
    const id = findPiece(this.#pieces, piece);
    return id < 0 ? undefined : id;
  }

  /** Appends the ids of `word`. */
  encodeWord(word: string, ids: number[]): void {
    if (this.#ignoresMerges) {
      const bytes = this.#encoder.encode(word);
      const id = this.#pieces.find(bytes, 0, bytes.length);
      if (id >= 0) {
        ids.push(id);
        return;
      }
    }
    this.#merger.encodeWord(word, ids);
  }
}

function tableOf(vocabulary: PairMergesVocabulary): PieceTable {
  const { vocabSize } = vocabulary;
  const builder = new PieceTableBuilder(vocabSize);
  const exists = new Uint8Array(vocabSize);
  const nothing = new Uint8Array(0);
  for (let id = 0; id < vocabSize; id++) {
    const piece = vocabulary.pieceAt(id);
    if (piece !== undefined) exists[id] = 1;
    builder.add(piece ?? nothing, false);
  }
  const table = builder.finish();
  for (let id = 0; id < vocabSize; id++) if (exists[id] === 1) table.enter(id);
  return table;
}

/** Neighbours merge if their pair is listed, the earliest in the list first. A merge is its place in the list. */
function pairRule(vocabulary: PairMergesVocabulary, pieces: PieceTable): MergeRule {
  const { ranks, results } = readMerges(vocabulary, pieces);
  const { fusesUnknown, unknownPiece, hasByteFallback } = vocabulary;
  const byteIds = hasByteFallback ? findByteIds(pieces) : undefined;
  const unknownId = unknownPiece === undefined ? -1 : findPiece(pieces, unknownPiece);
  return {
    characterId: (bytes, begin, end) => pieces.find(bytes, begin, end),
    mergeOf: (left, right) => (left < 0 || right < 0 ? -1 : ranks.get(left, right)),
    priorityOf: (rank) => -rank,
    resultOf: (rank) => results[rank],
    emitUnknown(bytes, begin, end, ids) {
      if (byteIds !== undefined) {
        for (let at = begin; at < end; at++) ids.push(byteIds[bytes[at]]);
      } else if (unknownId < 0) {
        const character = new TextDecoder().decode(bytes.subarray(begin, end));
        throw new FormatError(`The vocabulary has no token for "${character}", no byte tokens and no unknown token`);
      } else if (!fusesUnknown || ids.at(-1) !== unknownId) ids.push(unknownId);
    },
  };
}

function findPiece(pieces: PieceTable, piece: string): number {
  const bytes = new TextEncoder().encode(piece);
  return pieces.find(bytes, 0, bytes.length);
}

/** The tokens <0x00> to <0xFF>, or undefined if one is missing. */
function findByteIds(pieces: PieceTable): Int32Array | undefined {
  const ids = Int32Array.from({ length: 256 }, (_, byte) =>
    findPiece(pieces, `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
  );
  return ids.includes(-1) ? undefined : ids;
}

function readMerges(vocabulary: PairMergesVocabulary, pieces: PieceTable): { ranks: PairMap; results: Int32Array } {
  const { numMerges } = vocabulary;
  const ranks = new PairMap(numMerges);
  const results = new Int32Array(numMerges);
  let joined = new Uint8Array(256);
  for (let rank = 0; rank < numMerges; rank++) {
    const [left, right] = vocabulary.mergeAt(rank);
    const length = left.length + right.length;
    if (length > joined.length) joined = new Uint8Array(2 * length);
    joined.set(left);
    joined.set(right, left.length);
    const leftId = pieces.find(left, 0, left.length);
    const rightId = pieces.find(right, 0, right.length);
    results[rank] = pieces.find(joined, 0, length);
    if (leftId < 0 || rightId < 0 || results[rank] < 0) {
      const missing = leftId < 0 ? left : rightId < 0 ? right : joined.subarray(0, length);
      throw new FormatError(`Merge ${rank} needs "${new TextDecoder().decode(missing)}", which is no token`);
    }
    ranks.set(leftId, rightId, rank);
  }
  return { ranks, results };
}

/** Numbers >= 0 by pairs of ids: open addressing with linear probing, at most half full. */
class PairMap {
  /** Three numbers a slot: left id, right id, value (-1: empty). */
  readonly #slots: Int32Array;
  readonly #mask: number;

  constructor(capacity: number) {
    let numSlots = 16;
    while (numSlots < 2 * capacity) numSlots *= 2;
    this.#slots = new Int32Array(3 * numSlots).fill(-1);
    this.#mask = numSlots - 1;
  }

  /** The value of a pair, or -1. */
  get(left: number, right: number): number {
    return this.#slots[this.#slot(left, right) + 2];
  }

  /** Keeps the value that a pair already has: the earlier merge counts. */
  set(left: number, right: number, value: number): void {
    const slot = this.#slot(left, right);
    if (this.#slots[slot + 2] >= 0) return;
    this.#slots[slot] = left;
    this.#slots[slot + 1] = right;
    this.#slots[slot + 2] = value;
  }

  #slot(left: number, right: number): number {
    const slots = this.#slots;
    let h = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 15), 0xc2b2ae35);
    let slot = (h ^ (h >>> 13)) & this.#mask;
    while (slots[3 * slot + 2] >= 0 && (slots[3 * slot] !== left || slots[3 * slot + 1] !== right)) {
      slot = (slot + 1) & this.#mask;
    }
    return 3 * slot;
  }
}
