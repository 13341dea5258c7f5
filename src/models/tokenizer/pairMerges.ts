// BPE vocabularies that list which pairs merge, in order (the `BPE` model of tokenizer.json, the merges of a GGUF file), in typed arrays:
// 280,000 merges take 10 MB and a fraction of a second. Cutting texts into words is not its matter.
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

/** Whether this is a BPE model without the rarer features (dropout, marks at the ends of words), which the library then runs. */
export function isPairMerges(model: object): model is PairMergesJson {
  const { type, dropout, continuing_subword_prefix, end_of_word_suffix, vocab, merges } = model as Record<
    string,
    unknown
  >;
  const isPlain = !dropout && !continuing_subword_prefix && !end_of_word_suffix;
  return type === "BPE" && isPlain && typeof vocab === "object" && vocab !== null && Array.isArray(merges);
}

/** Words to ids by merging pairs in the order of a list. */
export class PairMerges {
  /** The pieces by id, as spelled in the file; ids that the vocabulary leaves out are empty. */
  readonly pieces: PieceTable;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #merger: SymbolMerger;
  readonly #ignoresMerges: boolean;
  readonly #encoder = new TextEncoder();

  /** `vocabSize`: ids are below this. Throws FormatError for a merge of pieces that are no tokens. */
  constructor(json: PairMergesJson, vocabSize: number) {
    this.pieces = tableOf(json.vocab, vocabSize);
    this.#merger = new SymbolMerger(pairRule(json, this.pieces));
    this.#ignoresMerges = json.ignore_merges ?? false;
  }

  /** The piece as spelled in the file; empty for an id without one. */
  pieceOf(id: number): string {
    return this.#decoder.decode(this.pieces.bytesAt(id));
  }

  idOf(piece: string): number | undefined {
    const id = findPiece(this.pieces, piece);
    return id < 0 ? undefined : id;
  }

  /** Appends the ids of `word`. */
  encodeWord(word: string, ids: number[]): void {
    if (this.#ignoresMerges) {
      const bytes = this.#encoder.encode(word);
      const id = this.pieces.find(bytes, 0, bytes.length);
      if (id >= 0) {
        ids.push(id);
        return;
      }
    }
    this.#merger.encodeWord(word, ids);
  }
}

/** Ids are below this: one more than the largest. Throws FormatError for an id that is none. */
export function vocabularySize(vocabulary: Readonly<Record<string, number>>, otherIds: Iterable<number>): number {
  let size = 0;
  for (const id of [...Object.values(vocabulary), ...otherIds]) {
    if (!Number.isInteger(id) || id < 0 || id >= 2 ** 24)
      throw new FormatError(`tokenizer.json has a token with id ${id}`);
    size = Math.max(size, id + 1);
  }
  return size;
}

function tableOf(vocabulary: Readonly<Record<string, number>>, vocabSize: number): PieceTable {
  const byId: (string | undefined)[] = new Array(vocabSize);
  for (const [piece, id] of Object.entries(vocabulary)) byId[id] = piece;
  const builder = new PieceTableBuilder(vocabSize);
  const encoder = new TextEncoder();
  for (let id = 0; id < vocabSize; id++) builder.add(encoder.encode(byId[id] ?? ""), false);
  const table = builder.finish();
  for (let id = 0; id < vocabSize; id++) if (byId[id] !== undefined) table.enter(id);
  return table;
}

/** Neighbours merge if their pair is listed, the earliest in the list first. A merge is its place in the list. */
function pairRule(json: PairMergesJson, pieces: PieceTable): MergeRule {
  const { ranks, results } = readMerges(json, pieces);
  const byteIds = json.byte_fallback ? findByteIds(pieces) : undefined;
  const unknownId = json.unk_token === null || json.unk_token === undefined ? -1 : findPiece(pieces, json.unk_token);
  const fusesUnknown = json.fuse_unk ?? false;
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
        throw new FormatError(`tokenizer.json has no token for "${character}", no byte tokens and no unknown token`);
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

function readMerges(json: PairMergesJson, pieces: PieceTable): { ranks: PairMap; results: Int32Array } {
  const ranks = new PairMap(json.merges.length);
  const results = new Int32Array(json.merges.length);
  const encoder = new TextEncoder();
  let bytes = new Uint8Array(256);
  json.merges.forEach((merge, rank) => {
    const [left, right, ...others] = typeof merge === "string" ? merge.split(" ") : merge;
    if (left === undefined || right === undefined || others.length > 0) {
      throw new FormatError(`Merge ${rank} is ${JSON.stringify(merge)}: a merge is two pieces`);
    }
    if (3 * (left.length + right.length) > bytes.length) bytes = new Uint8Array(6 * (left.length + right.length));
    const middle = encoder.encodeInto(left, bytes).written;
    const end = middle + encoder.encodeInto(right, bytes.subarray(middle)).written;
    const leftId = pieces.find(bytes, 0, middle);
    const rightId = pieces.find(bytes, middle, end);
    results[rank] = pieces.find(bytes, 0, end);
    if (leftId < 0 || rightId < 0 || results[rank] < 0) {
      const missing = leftId < 0 ? left : rightId < 0 ? right : left + right;
      throw new FormatError(`Merge ${rank} is ${JSON.stringify(merge)}, but "${missing}" is no token`);
    }
    ranks.set(leftId, rightId, rank);
  });
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
