/** The tokenizer inside a GGUF file: from its metadata (`tokenizer.ggml.*`) to a tokenizer. Reading the file is the reader's matter. */

import { FormatError } from "../../tensor/errors.ts";
import { SPACE } from "./bytes.ts";
import { ChatTemplate } from "./chatTemplate.ts";
import { type AddedTokenJson, addedTokensOf, libraryTokenizer, type TokenizerJson } from "./libraryModel.ts";
import type { PairMergesVocabulary } from "./pairMerges.ts";
import type { StringArray } from "./pieceTable.ts";
import { sentencePieceTokenizer, TokenType } from "./sentencePiece.ts";
import { type SplitRule, splitRules } from "./splitRules.ts";
import { endTokenIds, type Tokenizer } from "./tokenizer.ts";

/** GGUF metadata by key: numbers, strings, booleans, arrays of numbers, and arrays of strings as a StringArray. */
export interface GgufMetadata {
  get(key: string): unknown;
}

/**
 * Builds the tokenizer of a GGUF file: `llama` (sentencepiece) or `gpt2` (byte-level BPE). Throws FormatError naming the key
 * for another kind, an unknown split rule or entries that do not fit together.
 */
export function tokenizerFromGguf(metadata: GgufMetadata): Tokenizer {
  const reader = new MetadataReader(metadata);
  const kind = reader.string("tokenizer.ggml.model");
  if (kind === "llama") return sentencePieceFromGguf(reader);
  if (kind === "gpt2") return byteLevelFromGguf(reader);
  const given = kind === undefined ? "missing" : `"${kind}"`;
  throw new FormatError(
    `tokenizer.ggml.model is ${given}: supported are "llama" (sentencepiece) and "gpt2" (byte-level BPE)`,
  );
}

function sentencePieceFromGguf(reader: MetadataReader): Tokenizer {
  const tokens = reader.tokens();
  const scores = reader.numbers("tokenizer.ggml.scores");
  if (scores === undefined) throw new FormatError("tokenizer.ggml.scores is missing: sentencepiece merges by score");
  return sentencePieceTokenizer({
    tokens,
    scores,
    types: reader.types(tokens.length),
    unknownId: reader.tokenId("unknown", tokens.length),
    bosId: reader.tokenId("bos", tokens.length),
    eosIds: reader.endIds(tokens.length),
    addBos: reader.boolean("tokenizer.ggml.add_bos_token") ?? true,
    addEos: reader.boolean("tokenizer.ggml.add_eos_token") ?? false,
    addSpacePrefix: reader.boolean("tokenizer.ggml.add_space_prefix") ?? true,
    marksSpaces: true,
    chatTemplate: reader.chatTemplate(tokens),
  });
}

function byteLevelFromGguf(reader: MetadataReader): Tokenizer {
  const tokens = reader.tokens();
  const numTokens = tokens.length;
  const name = reader.string("tokenizer.ggml.pre") ?? "default";
  const rule = splitRules.get(name);
  if (rule === undefined) {
    throw new FormatError(`tokenizer.ggml.pre is "${name}": supported are ${[...splitRules.keys()].join(", ")}`);
  }
  const merges = reader.strings("tokenizer.ggml.merges");
  if (merges === undefined) throw new FormatError("tokenizer.ggml.merges is missing: byte-level BPE cannot do without");
  const json = byteLevelJson(tokens, reader.types(numTokens), rule);
  const bosId = reader.tokenId("bos", numTokens);
  const eosIds = endTokenIds(reader.endIds(numTokens), addedTokensOf(json));
  const addBos = reader.boolean("tokenizer.ggml.add_bos_token") ?? rule.addsBos ?? false;
  const addEos = reader.boolean("tokenizer.ggml.add_eos_token") ?? false;
  return libraryTokenizer(
    json,
    {},
    {
      bosId,
      eosIds,
      surroundingIds: {
        prefix: addBos && bosId !== undefined ? [bosId] : [],
        suffix: addEos && eosIds.length > 0 ? [eosIds[0]] : [],
      },
      vocabulary: byteLevelVocabulary(tokens, merges, rule),
      chatTemplate: reader.chatTemplate(tokens),
    },
  );
}

/** The tokenizer.json that says the same as the metadata, but for the vocabulary. */
function byteLevelJson(tokens: StringArray, types: ArrayLike<number>, rule: SplitRule): TokenizerJson {
  const addedTokens: AddedTokenJson[] = [];
  for (let id = 0; id < tokens.length; id++) {
    if (types[id] !== TokenType.control && types[id] !== TokenType.userDefined) continue;
    const special = types[id] === TokenType.control;
    addedTokens.push({ id, content: tokens.at(id) ?? "", special, normalized: false });
  }
  const splits = rule.patterns.map((pattern) => ({
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  }));
  return {
    added_tokens: addedTokens,
    normalizer: rule.composes ? { type: "NFC" } : null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [...splits, { type: "ByteLevel", add_prefix_space: false, use_regex: false }],
    },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", vocab: {}, merges: [] },
  };
}

function byteLevelVocabulary(tokens: StringArray, merges: StringArray, rule: SplitRule): PairMergesVocabulary {
  const encoder = new TextEncoder();
  const bytesOf = (strings: StringArray, index: number) =>
    strings.bytesAt?.(index) ?? encoder.encode(strings.at(index) ?? "");
  return {
    vocabSize: tokens.length,
    pieceAt: (id) => bytesOf(tokens, id),
    numMerges: merges.length,
    mergeAt(rank) {
      const merge = bytesOf(merges, rank);
      const space = merge.indexOf(SPACE, 1);
      if (space < 0 || space === merge.length - 1) {
        throw new FormatError(
          `tokenizer.ggml.merges[${rank}] is "${merges.at(rank)}": a merge is two pieces with a space between`,
        );
      }
      return [merge.subarray(0, space), merge.subarray(space + 1)];
    },
    ignoresMerges: rule.ignoreMerges ?? false,
    hasByteFallback: false,
    unknownPiece: undefined,
    fusesUnknown: false,
  };
}

/** Reads keys with the type they must have; undefined where a key is absent. */
class MetadataReader {
  readonly #metadata: GgufMetadata;

  constructor(metadata: GgufMetadata) {
    this.#metadata = metadata;
  }

  string(key: string): string | undefined {
    const value = this.#get(key);
    if (value === undefined || typeof value === "string") return value;
    throw new FormatError(`${key} is ${describe(value)}: it must be a string`);
  }

  boolean(key: string): boolean | undefined {
    const value = this.#get(key);
    if (value === undefined || typeof value === "boolean") return value;
    throw new FormatError(`${key} is ${describe(value)}: it must be a boolean`);
  }

  numbers(key: string): ArrayLike<number> | undefined {
    const value = this.#get(key);
    if (value === undefined || isNumberArray(value)) return value;
    throw new FormatError(`${key} is ${describe(value)}: it must be an array of numbers`);
  }

  strings(key: string): StringArray | undefined {
    const value = this.#get(key);
    if (value === undefined || isStringArray(value)) return value;
    throw new FormatError(`${key} is ${describe(value)}: it must be an array of strings`);
  }

  tokens(): StringArray {
    const tokens = this.strings("tokenizer.ggml.tokens");
    if (tokens === undefined) throw new FormatError("tokenizer.ggml.tokens is missing: the file has no vocabulary");
    return tokens;
  }

  /** The type of each token; all are normal where the file does not say. */
  types(numTokens: number): ArrayLike<number> {
    const types = this.numbers("tokenizer.ggml.token_type");
    if (types === undefined) return new Uint8Array(numTokens).fill(TokenType.normal);
    if (types.length === numTokens) return types;
    throw new FormatError(`tokenizer.ggml.token_type has ${types.length} entries for ${numTokens} tokens`);
  }

  tokenId(name: string, numTokens: number): number | undefined {
    const key = `tokenizer.ggml.${name}_token_id`;
    const value = this.#get(key);
    if (value === undefined) return undefined;
    const id = typeof value === "bigint" ? Number(value) : value;
    if (typeof id === "number" && Number.isInteger(id) && id >= 0 && id < numTokens) return id;
    throw new FormatError(`${key} is ${describe(value)}: the vocabulary has ids 0 to ${numTokens - 1}`);
  }

  /** End of text, of turn, of message. */
  endIds(numTokens: number): (number | undefined)[] {
    return ["eos", "eot", "eom"].map((name) => this.tokenId(name, numTokens));
  }

  chatTemplate(tokens: StringArray): ChatTemplate | undefined {
    const sources: Record<string, string> = {};
    const main = this.string("tokenizer.chat_template");
    if (main !== undefined) sources.default = main;
    const names = this.strings("tokenizer.chat_templates");
    for (let i = 0; names !== undefined && i < names.length; i++) {
      const name = names.at(i) ?? "";
      const source = this.string(`tokenizer.chat_template.${name}`);
      if (source !== undefined) sources[name] = source;
    }
    if (Object.keys(sources).length === 0) return undefined;
    const textOf = (name: string): string | undefined => {
      const id = this.tokenId(name, tokens.length);
      return id === undefined ? undefined : tokens.at(id);
    };
    return new ChatTemplate(sources, {
      bos_token: textOf("bos"),
      eos_token: textOf("eos"),
      unk_token: textOf("unknown"),
      pad_token: textOf("padding"),
    });
  }

  #get(key: string): unknown {
    return this.#metadata.get(key) ?? undefined;
  }
}

function isNumberArray(value: unknown): value is ArrayLike<number> {
  if (ArrayBuffer.isView(value))
    return !(value instanceof DataView || value instanceof BigInt64Array || value instanceof BigUint64Array);
  return Array.isArray(value) && (value.length === 0 || typeof value[0] === "number");
}

function isStringArray(value: unknown): value is StringArray {
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return false;
  if (Array.isArray(value)) return value.length === 0 || typeof value[0] === "string";
  return "length" in value && typeof value.length === "number" && "at" in value && typeof value.at === "function";
}

function describe(value: unknown): string {
  return typeof value === "string" ? `"${value}"` : Array.isArray(value) ? "an array" : `${value}`;
}
