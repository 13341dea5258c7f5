// Sentencepiece BPE vocabularies (tokens, scores, types: llama, Mistral, Gemma, Phi 3, llama2.c): the merging and the vocabulary.
// Which file they come from is the loaders' matter (gguf.ts, llama2c.ts). Kudo & Richardson 2018.
import { FormatError } from "../../tensor/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./addedTokens.ts";
import type { ChatTemplate } from "./chatTemplate.ts";
import { MergeQueue } from "./mergeQueue.ts";
import { type PieceTable, PieceTableBuilder, type StringArray } from "./pieceTable.ts";
import { endTokenIds, type SectionEncoder, Tokenizer } from "./tokenizer.ts";

/** Token types as GGUF numbers them. Unused tokens are matched like normal ones. */
export const TokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

export interface SentencePieceVocabulary {
  readonly tokens: StringArray;
  /** Merging order, highest first; length of `tokens`. */
  readonly scores: ArrayLike<number>;
  /** TokenType of each token. */
  readonly types: ArrayLike<number>;
  readonly unknownId: number | undefined;
  readonly bosId: number | undefined;
  /** End tokens that the file names. */
  readonly eosIds: readonly (number | undefined)[];
  readonly addBos: boolean;
  readonly addEos: boolean;
  /** Put a space in front of each stretch of text. */
  readonly addSpacePrefix: boolean;
  /** Spaces are written as U+2581 in pieces, and U+2581 in a text is a space. */
  readonly marksSpaces: boolean;
  readonly chatTemplate: ChatTemplate | undefined;
}

const SPACE = 0x20;

/** Builds the tokenizer. Throws FormatError where the arrays do not fit together. */
export function sentencePieceTokenizer(vocabulary: SentencePieceVocabulary): Tokenizer {
  const { tokens, types, bosId } = vocabulary;
  const numTokens = tokens.length;
  for (const name of ["scores", "types"] as const) {
    if (vocabulary[name].length !== numTokens) {
      throw new FormatError(`The tokenizer has ${vocabulary[name].length} ${name} for ${numTokens} tokens`);
    }
  }
  const pieces = new PieceTableBuilder(numTokens);
  const byteIds = new Int32Array(256).fill(-1);
  const byteValue = new Uint8Array(1);
  const controls: AddedToken[] = [];
  const userDefined: number[] = [];
  const encoder = new TextEncoder();
  for (let id = 0; id < numTokens; id++) {
    const type = types[id];
    const raw = tokens.bytesAt?.(id) ?? encoder.encode(tokens.at(id) ?? "");
    if (type === TokenType.byte) {
      byteValue[0] = parseByteToken(raw, id);
      byteIds[byteValue[0]] = id;
      pieces.add(byteValue, false);
    } else if (type === TokenType.control || type === TokenType.unknown) {
      pieces.add(raw, false);
      controls.push(addedToken(id, raw, true));
    } else {
      pieces.add(raw, vocabulary.marksSpaces);
      if (type === TokenType.userDefined) userDefined.push(id);
    }
  }
  const table = pieces.finish();
  const splitter = new AddedTokenSplitter(userDefined.map((id) => addedToken(id, table.bytesAt(id), false)));
  for (let id = 0; id < numTokens; id++) {
    const type = types[id];
    if (type === TokenType.normal || type === TokenType.userDefined || type === TokenType.unused) table.enter(id);
  }
  const eosIds = endTokenIds(vocabulary.eosIds, controls);
  return new Tokenizer({
    vocabSize: numTokens,
    model: new SentencePieceModel(table, byteIds, splitter, vocabulary),
    bytesAt: (id) => table.bytesAt(id),
    isByteToken: (id) => types[id] === TokenType.byte,
    addedTokens: controls,
    specialIds: new Set(controls.map((token) => token.id)),
    bosId,
    eosIds,
    prefixIds: vocabulary.addBos && bosId !== undefined ? [bosId] : [],
    suffixIds: vocabulary.addEos && eosIds.length > 0 ? [eosIds[0]] : [],
    invalidBytes: "perByte",
    leadingSpace: vocabulary.addSpacePrefix ? "dropBeforeText" : "keep",
    chatTemplate: vocabulary.chatTemplate,
  });
}

/**
 * Merges the neighbouring pair whose piece has the highest score, again and again, beginning with single characters. Pieces and
 * text are kept with plain spaces, one byte where U+2581 takes three.
 */
class SentencePieceModel implements SectionEncoder {
  readonly #pieces: PieceTable;
  readonly #byteIds: Int32Array;
  readonly #hasAllBytes: boolean;
  /** User-defined pieces are matched first and never merge: the stretches between them are independent. */
  readonly #userDefined: AddedTokenSplitter;
  readonly #scores: ArrayLike<number>;
  readonly #unknownId: number | undefined;
  readonly #addSpacePrefix: boolean;
  readonly #marksSpaces: boolean;
  readonly #queue = new MergeQueue();
  readonly #encoder = new TextEncoder();
  #text = new Uint8Array(0);
  // Symbols form a doubly linked list in text order; a symbol that was merged into its left neighbour has length 0.
  #begins = new Int32Array(0);
  #lengths = new Int32Array(0);
  #ids = new Int32Array(0);
  #previous = new Int32Array(0);
  #next = new Int32Array(0);

  constructor(
    pieces: PieceTable,
    byteIds: Int32Array,
    userDefined: AddedTokenSplitter,
    vocabulary: SentencePieceVocabulary,
  ) {
    this.#pieces = pieces;
    this.#byteIds = byteIds;
    this.#hasAllBytes = byteIds.every((id) => id >= 0);
    this.#userDefined = userDefined;
    this.#scores = vocabulary.scores;
    this.#unknownId = vocabulary.unknownId;
    this.#addSpacePrefix = vocabulary.addSpacePrefix;
    this.#marksSpaces = vocabulary.marksSpaces;
  }

  encodeSection(text: string, _sectionIndex: number, _parseSpecialTokens: boolean, ids: number[]): void {
    const spaced = this.#addSpacePrefix ? ` ${text}` : text;
    const plain = this.#marksSpaces ? spaced.replaceAll("\u2581", " ") : spaced;
    for (const section of this.#userDefined.split(plain)) {
      if (typeof section === "string") this.#encodeRuns(section, ids);
      else ids.push(section.id);
    }
  }

  #encodeRuns(text: string, ids: number[]): void {
    if (this.#text.length < 3 * text.length) this.#text = new Uint8Array(3 * text.length);
    const { written } = this.#encoder.encodeInto(text, this.#text);
    const bytes = this.#text;
    const { joinsSpace } = this.#pieces;
    // No merge reaches over a space after a byte that no piece has before one: what follows is a run of its own.
    let begin = 0;
    for (let at = 1; at < written; at++) {
      if (bytes[at] !== SPACE || joinsSpace[bytes[at - 1]] === 1) continue;
      this.#merge(begin, at, ids);
      begin = at;
    }
    this.#merge(begin, written, ids);
  }

  /** Appends the ids of the bytes begin..end of the text. */
  #merge(begin: number, end: number, ids: number[]): void {
    const numSymbols = this.#readSymbols(begin, end);
    const queue = this.#queue;
    queue.reset(numSymbols);
    for (let symbol = 0; symbol + 1 < numSymbols; symbol++) this.#propose(symbol, symbol + 1);
    const lengths = this.#lengths;
    while (queue.pop()) {
      const { left, right } = queue;
      // Outdated if one of the two has been merged since: it is gone, or longer than it was.
      if (lengths[left] === 0 || lengths[right] === 0 || lengths[left] + lengths[right] !== queue.numBytes) continue;
      lengths[left] = queue.numBytes;
      lengths[right] = 0;
      this.#ids[left] = queue.piece;
      const after = this.#next[right];
      this.#next[left] = after;
      if (after >= 0) this.#previous[after] = left;
      if (this.#previous[left] >= 0) this.#propose(this.#previous[left], left);
      if (after >= 0) this.#propose(left, after);
    }
    for (let symbol = 0; symbol >= 0; symbol = this.#next[symbol]) this.#emit(symbol, ids);
  }

  /** Fills the list with the characters of these bytes; returns how many there are. */
  #readSymbols(runBegin: number, runEnd: number): number {
    if (this.#begins.length < runEnd - runBegin) this.#grow(runEnd - runBegin);
    const bytes = this.#text;
    let count = 0;
    for (let begin = runBegin; begin < runEnd; count++) {
      const lead = bytes[begin];
      const length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      this.#begins[count] = begin;
      this.#lengths[count] = length;
      this.#ids[count] = this.#pieces.find(bytes, begin, begin + length);
      this.#previous[count] = count - 1;
      this.#next[count] = count + 1;
      begin += length;
    }
    this.#next[count - 1] = -1;
    return count;
  }

  #grow(numSymbols: number): void {
    const capacity = Math.max(256, 2 * numSymbols);
    this.#begins = new Int32Array(capacity);
    this.#lengths = new Int32Array(capacity);
    this.#ids = new Int32Array(capacity);
    this.#previous = new Int32Array(capacity);
    this.#next = new Int32Array(capacity);
  }

  /** Queues the merge of two neighbours if there is a piece for it. */
  #propose(left: number, right: number): void {
    const numBytes = this.#lengths[left] + this.#lengths[right];
    const begin = this.#begins[left];
    const piece = this.#pieces.find(this.#text, begin, begin + numBytes);
    if (piece >= 0) this.#queue.push(this.#scores[piece], left, right, piece, numBytes);
  }

  #emit(symbol: number, ids: number[]): void {
    const id = this.#ids[symbol];
    if (id >= 0) {
      ids.push(id);
    } else if (this.#hasAllBytes) {
      const begin = this.#begins[symbol];
      for (let i = 0; i < this.#lengths[symbol]; i++) ids.push(this.#byteIds[this.#text[begin + i]]);
    } else {
      // A run of unknown characters is one unknown token, as in sentencepiece.
      if (this.#unknownId === undefined) {
        throw new FormatError(
          "The tokenizer has neither all 256 byte tokens nor an unknown token: it cannot encode this text",
        );
      }
      if (ids.at(-1) !== this.#unknownId) ids.push(this.#unknownId);
    }
  }
}

function addedToken(id: number, bytes: Uint8Array, special: boolean): AddedToken {
  const content = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  return { id, content, special, normalized: false, lstrip: false, rstrip: false, singleWord: false };
}

/** The value of a byte token `<0x0A>`. */
function parseByteToken(raw: Uint8Array, id: number): number {
  const text = String.fromCharCode(...raw.subarray(0, 8));
  const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(text);
  if (hex === null)
    throw new FormatError(`Token ${id} is "${text}" and typed as a byte: byte tokens read <0x00> to <0xFF>`);
  return Number.parseInt(hex[1], 16);
}
