/**
 * Tokenizers that tokenizer.json describes, with the normalisers, pre-tokenizers and post-processors of @huggingface/tokenizers. The rest
 * is ours: the library's encode() always recognises control tokens, its decode() tidies up spaces before punctuation, loses byte order
 * marks and writes one U+FFFD for a run of invalid bytes, and its BPE keeps every merge as a JSON string.
 */

import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { FormatError } from "../../tensor/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./addedTokens.ts";
import type { ChatTemplate } from "./chatTemplate.ts";
import { isPairMerges, jsonVocabulary, PairMerges, type PairMergesVocabulary } from "./pairMerges.ts";
import { type PieceDecoder, parsePieceDecoder } from "./pieceDecoder.ts";
import { type SectionEncoder, Tokenizer } from "./tokenizer.ts";

/** A tokenizer.json after JSON.parse, as far as we read it ourselves. */
export interface TokenizerJson {
  readonly model: object;
  readonly added_tokens?: readonly AddedTokenJson[] | null;
  readonly normalizer?: object | null;
  readonly pre_tokenizer?: object | null;
  readonly post_processor?: object | null;
  readonly decoder?: object | null;
}

/** An entry of `added_tokens`. */
export interface AddedTokenJson {
  readonly id: number;
  readonly content: string;
  readonly special?: boolean;
  readonly normalized?: boolean;
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  readonly single_word?: boolean;
}

/** What tokenizer.json does not say. */
export interface LibraryTokenizerOptions {
  readonly bosId: number | undefined;
  readonly eosIds: readonly number[];
  /** Replaces the post-processor: ids around each text. */
  readonly surroundingIds?: { readonly prefix: readonly number[]; readonly suffix: readonly number[] };
  /** Replaces a model of type BPE. */
  readonly vocabulary?: PairMergesVocabulary;
  readonly chatTemplate: ChatTemplate | undefined;
}

/** The fields of `added_tokens` with tokenizer.json's defaults filled in. */
export function addedTokensOf(json: TokenizerJson): AddedToken[] {
  return (json.added_tokens ?? []).map((token) => ({
    id: token.id,
    content: token.content,
    special: token.special ?? false,
    normalized: token.normalized ?? !token.special,
    lstrip: token.lstrip ?? false,
    rstrip: token.rstrip ?? false,
    singleWord: token.single_word ?? false,
  }));
}

/** Builds a tokenizer from tokenizer.json's content. Throws FormatError for what we or the library cannot run. */
export function libraryTokenizer(
  json: TokenizerJson,
  config: Readonly<Record<string, unknown>>,
  options: LibraryTokenizerOptions,
): Tokenizer {
  const addedTokens = addedTokensOf(json);
  const decoder = parsePieceDecoder(json.decoder);
  const library = construct(json, config);
  const words = wordModel(json, library, addedTokens, options);
  const { normalizer, pre_tokenizer: preTokenizer } = library;
  const normalize = (text: string) => (normalizer === null ? text : normalizer.normalize(text));
  // Without a normaliser, all tokens are matched in the text as it stands.
  const isCutFirst = (token: AddedToken) => normalizer === null || !token.normalized;
  const normalizedTokens = addedTokens
    .filter((token) => !isCutFirst(token))
    .map((token) => ({ ...token, content: normalize(token.content) }));
  const { prefix, suffix } = options.surroundingIds ?? surroundingIds(library, addedTokens, words);
  const added = new Map(addedTokens.map((token) => [token.id, token.content]));
  return new Tokenizer({
    vocabSize: words.vocabSize,
    model: new LibraryModel({
      normalize,
      split: (text, sectionIndex) =>
        preTokenizer === null ? [text] : preTokenizer.pre_tokenize(text, { section_index: sectionIndex }),
      encodeWords: words.encodeWords,
      normalizedTokens,
    }),
    bytesAt: tokenBytes(words, added, decoder),
    isByteToken: (id) => decoder.hasByteTokens && decoder.isByteToken(words.pieceOf(id)),
    addedTokens: addedTokens.filter(isCutFirst),
    specialIds: new Set(addedTokens.filter((token) => token.special).map((token) => token.id)),
    bosId: options.bosId,
    eosIds: options.eosIds,
    prefixIds: prefix,
    suffixIds: suffix,
    invalidBytes: decoder.invalidBytes,
    leadingSpace: decoder.dropsLeadingSpace ? "dropAtStart" : "keep",
    chatTemplate: options.chatTemplate,
  });
}

/** From the words that the pre-tokenizer cuts to ids: our own merging for BPE, the library's model for the rest. */
interface WordModel {
  readonly vocabSize: number;
  encodeWords(words: readonly string[], ids: number[]): void;
  /** The piece as the file spells it; empty for an id without one. */
  pieceOf(id: number): string;
  idOf(piece: string): number | undefined;
}

function wordModel(
  json: TokenizerJson,
  library: LibraryTokenizer,
  addedTokens: readonly AddedToken[],
  options: LibraryTokenizerOptions,
): WordModel {
  const vocabulary =
    options.vocabulary ??
    (isPairMerges(json.model)
      ? jsonVocabulary(
          json.model,
          addedTokens.map((token) => token.id),
        )
      : undefined);
  if (vocabulary !== undefined) {
    const merges = new PairMerges(vocabulary);
    return {
      vocabSize: merges.vocabSize,
      encodeWords: (words, ids) => {
        for (const word of words) merges.encodeWord(word, ids);
      },
      pieceOf: (id) => merges.pieceOf(id),
      idOf: (piece) => merges.idOf(piece),
    };
  }
  const { model } = library;
  if (model === null) throw new FormatError("tokenizer.json has no model");
  return {
    vocabSize: model.vocab.length,
    encodeWords: (words, ids) => {
      for (const piece of model._call([...words])) {
        const id = model.tokens_to_ids.get(piece) ?? model.unk_token_id;
        if (id === undefined) throw new FormatError(`tokenizer.json has no token for "${piece}" and no unknown token`);
        ids.push(id);
      }
    },
    pieceOf: (id) => model.vocab[id] ?? "",
    idOf: (piece) => model.tokens_to_ids.get(piece),
  };
}

/** The steps of the library, each a function of its own. */
interface LibrarySteps {
  normalize(text: string): string;
  split(text: string, sectionIndex: number): string[];
  encodeWords(words: readonly string[], ids: number[]): void;
  readonly normalizedTokens: readonly AddedToken[];
}

class LibraryModel implements SectionEncoder {
  readonly #steps: LibrarySteps;
  /** For tokens matched in normalised text: all of them, and those that carry no control meaning. */
  readonly #allTokens: AddedTokenSplitter;
  readonly #plainTokens: AddedTokenSplitter;

  constructor(steps: LibrarySteps) {
    this.#steps = steps;
    this.#allTokens = new AddedTokenSplitter(steps.normalizedTokens);
    this.#plainTokens = new AddedTokenSplitter(steps.normalizedTokens.filter((token) => !token.special));
  }

  encodeSection(text: string, sectionIndex: number, parseSpecialTokens: boolean, ids: number[]): void {
    const splitter = parseSpecialTokens ? this.#allTokens : this.#plainTokens;
    for (const section of splitter.split(this.#steps.normalize(text))) {
      if (typeof section === "string") this.#steps.encodeWords(this.#steps.split(section, sectionIndex), ids);
      else ids.push(section.id);
    }
  }
}

function construct(json: TokenizerJson, config: Readonly<Record<string, unknown>>): LibraryTokenizer {
  // The library wants all keys to be there; files leave out what is null.
  const complete = {
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: null,
    ...json,
    added_tokens: json.added_tokens ?? [],
    // We merge ourselves, and spare the library the building of its tables.
    model: isPairMerges(json.model) ? { type: "BPE", vocab: {}, merges: [] } : json.model,
  };
  try {
    return new LibraryTokenizer(complete, config);
  } catch (cause) {
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new FormatError(`tokenizer.json describes a tokenizer that cannot be built: ${message}`, { cause });
  }
}

/** The ids that the post-processor puts around a text, seen by letting it process a stand-in. */
function surroundingIds(
  library: LibraryTokenizer,
  addedTokens: readonly AddedToken[],
  words: WordModel,
): { prefix: number[]; suffix: number[] } {
  const { post_processor: postProcessor } = library;
  if (postProcessor === null) return { prefix: [], suffix: [] };
  const standIn = "\u0000text\u0000";
  const { tokens } = postProcessor.post_process([standIn], null, true);
  const at = tokens.indexOf(standIn);
  const idOf = (content: string): number => {
    const id = addedTokens.find((token) => token.content === content)?.id ?? words.idOf(content);
    if (id === undefined) {
      throw new FormatError(`The post-processor of tokenizer.json adds "${content}", which is no token`);
    }
    return id;
  };
  return { prefix: tokens.slice(0, at).map(idOf), suffix: tokens.slice(at + 1).map(idOf) };
}

/** Bytes by id, made when first asked for. Added tokens stand for themselves, whatever the spelling of the other pieces is. */
function tokenBytes(
  words: WordModel,
  addedTokens: ReadonlyMap<number, string>,
  decoder: PieceDecoder,
): (id: number) => Uint8Array {
  const encoder = new TextEncoder();
  const known = new Map<number, Uint8Array>();
  return (id) => {
    let bytes = known.get(id);
    if (bytes === undefined) {
      const content = addedTokens.get(id);
      bytes = content === undefined ? decoder.bytesOf(words.pieceOf(id)) : encoder.encode(content);
      known.set(id, bytes);
    }
    return bytes;
  };
}
