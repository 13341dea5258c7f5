/**
 * A tokenizer as the engine sees it: text to ids, ids to bytes and text. How a stretch of plain text is cut into pieces is the
 * `SectionEncoder`'s matter (sentencePiece.ts, libraryModel.ts); how a file becomes a tokenizer is the loaders'.
 */

import { ArgumentError } from "../../tensor/errors.ts";
import { type AddedToken, AddedTokenSplitter } from "./addedTokens.ts";
import { NO_BYTES } from "./bytes.ts";
import type { ChatTemplate } from "./chatTemplate.ts";
import { IncrementalDecoder } from "./incrementalDecoder.ts";
import type { InvalidBytes } from "./utf8Decoder.ts";

/** How control tokens are treated in `encode`. */
export interface EncodeOptions {
  /** Put the begin (and end) tokens that the model was trained with around the text. Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * Recognise control tokens written in the text, such as `<end_of_turn>`. Default false: a user's text cannot forge a turn.
   * A rendered chat template needs true, and `addSpecialTokens: false`, as templates write the begin token themselves.
   */
  readonly parseSpecialTokens?: boolean;
}

/** How control tokens and a leading space are treated in `decode`. */
export interface DecodeOptions {
  /** Leave control tokens out of the text. Default false: they appear by name. */
  readonly skipSpecialTokens?: boolean;
  /**
   * The ids go on from a text that is already there, so that a leading space belongs to the text. Default false: tokenizers that
   * put a space in front of every text take it away again.
   */
  readonly isContinuation?: boolean;
}

/** Turns a stretch of text without control tokens into ids. */
export interface SectionEncoder {
  /**
   * Appends the ids of `text` to `ids`. `sectionIndex` counts the stretches and tokens before it; `parseSpecialTokens` matters to
   * models that match control tokens in normalised text only.
   */
  encodeSection(text: string, sectionIndex: number, parseSpecialTokens: boolean, ids: number[]): void;
}

/** What to do with a space at the very start of a decoded text. */
export type LeadingSpace =
  | "keep"
  /** Drop it if nothing, not even a control token, comes before it (the `Strip` step of tokenizer.json). */
  | "dropAtStart"
  /** Drop it if no text comes before it (sentencepiece, llama2.c). */
  | "dropBeforeText";

/** What a loader has to know of a vocabulary. */
export interface TokenizerParts {
  readonly vocabSize: number;
  readonly model: SectionEncoder;
  /** The bytes that a token stands for in decoded text; empty for an id without a token. `id` is in 0..vocabSize-1. */
  bytesAt(id: number): Uint8Array;
  /** Whether the token stands for one byte, of a character that has no piece. */
  isByteToken(id: number): boolean;
  /** Tokens that are cut out of the text before normalisation. */
  readonly addedTokens: readonly AddedToken[];
  /** Control tokens: left out with `skipSpecialTokens`. */
  readonly specialIds: ReadonlySet<number>;
  readonly bosId: number | undefined;
  readonly eosIds: readonly number[];
  /** Ids put before and after the text with `addSpecialTokens`. */
  readonly prefixIds: readonly number[];
  readonly suffixIds: readonly number[];
  readonly invalidBytes: InvalidBytes;
  readonly leadingSpace: LeadingSpace;
  readonly chatTemplate: ChatTemplate | undefined;
}

/** A vocabulary that encodes and decodes. Loaders make it: `tokenizerFromGguf`, `loadTokenizerJson`, `tokenizerFromLlama2c`. */
export class Tokenizer {
  /** Ids are below this. A model may have more rows than that, as padding; their ids decode to nothing. */
  readonly vocabSize: number;
  /** The token that begins a document, if there is one. */
  readonly bosId: number | undefined;
  /** Tokens that end a generation: end of text, end of turn. The first is the one the file names. */
  readonly eosIds: readonly number[];
  /** The template that came with the tokenizer. */
  readonly chatTemplate: ChatTemplate | undefined;
  readonly leadingSpace: LeadingSpace;
  readonly invalidBytes: InvalidBytes;
  readonly #parts: TokenizerParts;
  /** Built when first needed: with control tokens (true) and without. */
  readonly #splitters = new Map<boolean, AddedTokenSplitter>();
  #specialIds: Map<string, number> | undefined;

  constructor(parts: TokenizerParts) {
    this.#parts = parts;
    this.vocabSize = parts.vocabSize;
    this.bosId = parts.bosId;
    this.eosIds = parts.eosIds;
    this.chatTemplate = parts.chatTemplate;
    this.leadingSpace = parts.leadingSpace;
    this.invalidBytes = parts.invalidBytes;
  }

  /** The ids of `text`. Unpaired surrogates count as U+FFFD. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { addSpecialTokens = true, parseSpecialTokens = false } = options;
    const ids: number[] = addSpecialTokens ? [...this.#parts.prefixIds] : [];
    const sections = this.#splitter(parseSpecialTokens).split(text);
    sections.forEach((section, index) => {
      if (typeof section === "string") this.#parts.model.encodeSection(section, index, parseSpecialTokens, ids);
      else ids.push(section.id);
    });
    if (addSpecialTokens) ids.push(...this.#parts.suffixIds);
    return ids;
  }

  /** The text of `ids`; bytes that are no UTF-8 become U+FFFD. Throws ArgumentError for an id that is no token id. */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const decoder = this.incrementalDecoder(options);
    return decoder.push(ids) + decoder.flush();
  }

  /** A decoder for ids that arrive one after the other. */
  incrementalDecoder(options: DecodeOptions = {}): IncrementalDecoder {
    return new IncrementalDecoder(this, options);
  }

  /**
   * The bytes of one token, as they appear in a decoded text (a copy is not made: do not write to it). Byte tokens and many
   * byte-level tokens hold parts of a character. Throws ArgumentError unless `id` is an integer >= 0.
   */
  tokenBytes(id: number): Uint8Array {
    if (!Number.isInteger(id) || id < 0) throw new ArgumentError(`id = ${id} is not a token id: ids are integers >= 0`);
    return id < this.vocabSize ? this.#parts.bytesAt(id) : NO_BYTES;
  }

  /** The text of one token alone, for display: a control token's name, U+FFFD for half a character. */
  tokenText(id: number): string {
    return this.decode([id], { isContinuation: true });
  }

  /** Whether `id` is a control token. */
  isSpecial(id: number): boolean {
    return this.#parts.specialIds.has(id);
  }

  /** Whether `id` stands for one byte of a character without a piece of its own (never so for byte-level tokenizers). */
  isByteToken(id: number): boolean {
    return this.#parts.isByteToken(id);
  }

  /** All control tokens by their text. */
  get specialTokens(): ReadonlyMap<string, number> {
    this.#specialIds ??= new Map([...this.#parts.specialIds].map((id) => [this.tokenText(id), id]));
    return this.#specialIds;
  }

  #splitter(parseSpecialTokens: boolean): AddedTokenSplitter {
    let splitter = this.#splitters.get(parseSpecialTokens);
    if (splitter === undefined) {
      const { addedTokens } = this.#parts;
      splitter = new AddedTokenSplitter(
        parseSpecialTokens ? addedTokens : addedTokens.filter((token) => !token.special),
      );
      this.#splitters.set(parseSpecialTokens, splitter);
    }
    return splitter;
  }
}

/**
 * Names under which model families publish a token that ends a turn or a text. Files name one end token, chat models stop at
 * another (Gemma names `<eos>` and ends turns with `<end_of_turn>`), so that these count too if they are control tokens.
 */
const END_TOKENS = [
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|im_end|>",
  "<|endoftext|>",
  "<|end|>",
  "<end_of_turn>",
];

/** The end tokens of a vocabulary: those that the file names, then those known by name. */
export function endTokenIds(named: Iterable<number | undefined>, specials: Iterable<AddedToken>): number[] {
  const ids = new Set<number>();
  for (const id of named) if (id !== undefined) ids.add(id);
  for (const token of specials) if (token.special && END_TOKENS.includes(token.content)) ids.add(token.id);
  return [...ids];
}
