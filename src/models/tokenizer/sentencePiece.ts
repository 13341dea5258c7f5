/**
 * Sentencepiece BPE vocabularies (tokens, scores, types: llama, Mistral, Gemma, Phi 3, llama2.c): the merging and the vocabulary.
 * Which file they come from is the loaders' matter (gguf.ts, llama2c.ts). Kudo & Richardson 2018.
 */

import { FormatError } from "../../tensor/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./addedTokens.ts";
import { SPACE } from "./bytes.ts";
import type { ChatTemplate } from "./chatTemplate.ts";
import { type PieceTable, PieceTableBuilder, type StringArray } from "./pieceTable.ts";
import { type MergeRule, SymbolMerger } from "./symbolMerger.ts";
import { endTokenIds, type SectionEncoder, Tokenizer } from "./tokenizer.ts";

/** Token types as GGUF numbers them. Unused tokens are matched like normal ones. */
export const TokenType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** A vocabulary as files of the kind hold it. The arrays have an entry for each token. */
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
 * Cuts texts into words and merges each. Pieces and text are kept with plain spaces, one byte where U+2581 takes three.
 */
class SentencePieceModel implements SectionEncoder {
  readonly #pieces: PieceTable;
  readonly #merger: SymbolMerger;
  /** User-defined pieces are matched first and never merge: the stretches between them are independent. */
  readonly #userDefined: AddedTokenSplitter;
  readonly #addSpacePrefix: boolean;
  readonly #marksSpaces: boolean;

  constructor(
    pieces: PieceTable,
    byteIds: Int32Array,
    userDefined: AddedTokenSplitter,
    vocabulary: SentencePieceVocabulary,
  ) {
    this.#pieces = pieces;
    this.#merger = new SymbolMerger(scoreRule(pieces, vocabulary.scores, byteIds, vocabulary.unknownId));
    this.#userDefined = userDefined;
    this.#addSpacePrefix = vocabulary.addSpacePrefix;
    this.#marksSpaces = vocabulary.marksSpaces;
  }

  encodeSection(text: string, _sectionIndex: number, _parseSpecialTokens: boolean, ids: number[]): void {
    const spaced = this.#addSpacePrefix ? ` ${text}` : text;
    const plain = this.#marksSpaces ? spaced.replaceAll("\u2581", " ") : spaced;
    for (const section of this.#userDefined.split(plain)) {
      if (typeof section === "string") this.#encodeWords(section, ids);
      else ids.push(section.id);
    }
  }

  /** A space begins a new word, unless some piece has one after the byte before it: no merge reaches over it. */
  #encodeWords(text: string, ids: number[]): void {
    const { joinsSpace } = this.#pieces;
    let begin = 0;
    for (let at = 1; at < text.length; at++) {
      if (text.charCodeAt(at) !== SPACE) continue;
      const unit = text.charCodeAt(at - 1);
      const lastByte = unit < 0x80 ? unit : 0x80 | (unit & 0x3f);
      if (joinsSpace[lastByte] === 1) continue;
      this.#merger.encodeWord(text.slice(begin, at), ids);
      begin = at;
    }
    this.#merger.encodeWord(text.slice(begin), ids);
  }
}

/** Sentencepiece's rule: any two neighbours whose texts make a piece, the highest score first. A merge is the piece it makes. */
function scoreRule(
  pieces: PieceTable,
  scores: ArrayLike<number>,
  byteIds: Int32Array,
  unknownId: number | undefined,
): MergeRule {
  const hasAllBytes = byteIds.every((id) => id >= 0);
  return {
    characterId: (bytes, begin, end) => pieces.find(bytes, begin, end),
    mergeOf: (_left, _right, bytes, begin, end) => pieces.find(bytes, begin, end),
    priorityOf: (piece) => scores[piece],
    resultOf: (piece) => piece,
    emitUnknown(bytes, begin, end, ids) {
      if (hasAllBytes) {
        for (let at = begin; at < end; at++) ids.push(byteIds[bytes[at]]);
      } else if (unknownId === undefined) {
        throw new FormatError(
          "The tokenizer has neither all 256 byte tokens nor an unknown token: it cannot encode this text",
        );
      } else if (ids.at(-1) !== unknownId) ids.push(unknownId); // a run of unknown characters is one token
    },
  };
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
