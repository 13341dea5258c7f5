/**
 * tokenizer.json with tokenizer_config.json, as Hugging Face repositories hold them, to a tokenizer. Reading the files is the caller's matter.
 */

import { FormatError } from "../../tensor/errors.ts";
import { ChatTemplate } from "./chatTemplate.ts";
import { addedTokensOf, libraryTokenizer, type TokenizerJson } from "./libraryModel.ts";
import { endTokenIds, type Tokenizer } from "./tokenizer.ts";

/** A tokenizer_config.json after JSON.parse. */
export type TokenizerConfig = Readonly<Record<string, unknown>>;

/**
 * Builds the tokenizer of a Hugging Face repository. `chatTemplate`: the content of chat_template.jinja, which newer repositories
 * have instead of the entry in tokenizer_config.json. Throws FormatError for a file that cannot be used.
 */
export function loadTokenizerJson(
  tokenizerJson: unknown,
  tokenizerConfig: TokenizerConfig = {},
  chatTemplate?: string,
): Tokenizer {
  if (!isTokenizerJson(tokenizerJson)) throw new FormatError("tokenizer.json is not an object with a `model` in it");
  const specials = addedTokensOf(tokenizerJson).filter((token) => token.special);
  const idOf = (name: string): number | undefined => {
    const content = tokenContent(tokenizerConfig[name]);
    return addedTokensOf(tokenizerJson).find((token) => token.content === content)?.id;
  };
  const source = chatTemplate ?? templateSources(tokenizerConfig.chat_template);
  const template = source === undefined ? undefined : new ChatTemplate(source, templateTokens(tokenizerConfig));
  return libraryTokenizer(tokenizerJson, tokenizerConfig, {
    bosId: idOf("bos_token"),
    eosIds: endTokenIds([idOf("eos_token")], specials),
    chatTemplate: template,
  });
}

function isTokenizerJson(value: unknown): value is TokenizerJson {
  return typeof value === "object" && value !== null && "model" in value && typeof value.model === "object";
}

/** The text of a token entry: a string, or an object with `content`. */
function tokenContent(entry: unknown): string | undefined {
  if (typeof entry === "string") return entry;
  if (typeof entry !== "object" || entry === null || !("content" in entry)) return undefined;
  return typeof entry.content === "string" ? entry.content : undefined;
}

/** All `..._token` entries, for templates that mention them. */
function templateTokens(config: TokenizerConfig): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const [name, entry] of Object.entries(config)) {
    const content = name.endsWith("_token") ? tokenContent(entry) : undefined;
    if (content !== undefined) tokens[name] = content;
  }
  return tokens;
}

/** `chat_template` is one template, or a list of named ones. */
function templateSources(entry: unknown): string | Record<string, string> | undefined {
  if (typeof entry === "string") return entry;
  if (!Array.isArray(entry)) return undefined;
  const sources: Record<string, string> = {};
  for (const item of entry) {
    if (typeof item?.name !== "string" || typeof item?.template !== "string") {
      throw new FormatError("chat_template of tokenizer_config.json is a list, but not one of { name, template }");
    }
    sources[item.name] = item.template;
  }
  return sources;
}
