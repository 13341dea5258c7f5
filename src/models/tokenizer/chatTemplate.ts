/** Chat messages to a prompt, through the Jinja template that a model brings along. Encoding the prompt is the tokenizer's matter. */

import { Template } from "@huggingface/jinja";
import { ArgumentError, FormatError } from "../../tensor/errors.ts";

/** A message; templates of some models read further fields (`tool_calls`, `name`, content parts). */
export interface ChatMessage {
  readonly role: string;
  readonly content?: unknown;
  readonly [field: string]: unknown;
}

/** How a conversation is rendered. */
export interface ChatTemplateOptions {
  /** Open the assistant's turn at the end. Default false. */
  readonly addGenerationPrompt?: boolean;
  /** Tool descriptions in JSON-schema form. */
  readonly tools?: readonly unknown[];
  readonly documents?: readonly unknown[];
  /** Further variables that a template reads, such as `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** Texts that templates refer to by name: `bos_token`, `eos_token`, `unk_token`, `pad_token`. */
export type TemplateTokens = Readonly<Record<string, string | undefined>>;

/** A model's Jinja template, parsed once. */
export class ChatTemplate {
  /** The Jinja sources by name. `tool_use` takes over from `default` when there are tools, as in transformers. */
  readonly sources: Readonly<Record<string, string>>;
  readonly #tokens: TemplateTokens;
  readonly #parsed = new Map<string, Template>();

  /** `source`: one template, or several by name of which one is called `default`. */
  constructor(source: string | Readonly<Record<string, string>>, tokens: TemplateTokens = {}) {
    this.sources = typeof source === "string" ? { default: source } : source;
    this.#tokens = tokens;
  }

  /**
   * The prompt for these messages, to be encoded with `{ addSpecialTokens: false, parseSpecialTokens: true }`.
   * Throws ArgumentError with the template's own message where it refuses (`raise_exception`), FormatError where it cannot be parsed.
   */
  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const name = options.tools !== undefined && this.sources.tool_use !== undefined ? "tool_use" : "default";
    const template = this.#template(name);
    try {
      return template.render({
        ...this.#tokens,
        ...options.variables,
        messages,
        // None in transformers, which is defined: templates tell the two apart.
        tools: options.tools ?? null,
        documents: options.documents ?? null,
        add_generation_prompt: options.addGenerationPrompt ?? false,
      });
    } catch (cause) {
      const message = cause instanceof Error ? cause.message : String(cause);
      throw new ArgumentError(`The chat template refuses these messages: ${message}`, { cause });
    }
  }

  #template(name: string): Template {
    const parsed = this.#parsed.get(name);
    if (parsed !== undefined) return parsed;
    const source = this.sources[name];
    if (source === undefined) {
      throw new FormatError(`The chat templates are named ${Object.keys(this.sources).join(", ")}: none is "${name}"`);
    }
    try {
      const template = new Template(source);
      this.#parsed.set(name, template);
      return template;
    } catch (cause) {
      const message = cause instanceof Error ? cause.message : String(cause);
      throw new FormatError(`The chat template "${name}" cannot be parsed: ${message}`, { cause });
    }
  }
}
