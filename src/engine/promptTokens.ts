/** From a prompt as callers write it to the tokens that are computed. */

import { ArgumentError } from "../tensor/errors.ts";
import type { EngineTokenizer } from "./backend.ts";
import type { TokenizeOptions } from "./messages.ts";
import type { ChatMessage, Prompt } from "./types.ts";

/** Whether the prompt is a conversation, to be put into words by the model's chat template. */
export function isConversation(prompt: Prompt): prompt is readonly ChatMessage[] {
  return typeof prompt !== "string" && typeof prompt[0] === "object";
}

/** The model's side of the matter. */
export interface PromptModel {
  readonly tokenizer: EngineTokenizer;
  readonly vocabSize: number;
}

/**
 * Text gets the model's special tokens around it; a conversation is rendered with the assistant's turn opened; tokens stay as they are.
 * Throws ArgumentError for anything else, for a number that is no token, and for a conversation with a model that has no chat template.
 */
export function promptTokens(
  prompt: Prompt,
  { tokenizer, vocabSize }: PromptModel,
  options: TokenizeOptions,
): number[] {
  if (typeof prompt === "string")
    return tokenizer.encode(prompt, { parseSpecialTokens: options.parseSpecialTokens ?? false });
  if (!Array.isArray(prompt))
    throw new ArgumentError(
      `prompt must be text, an array of token numbers or an array of messages, got ${prompt === null ? "null" : typeof prompt}`,
    );
  if (isConversation(prompt)) return conversationTokens(prompt, tokenizer, options.templateVariables);
  return checkTokens("prompt", prompt, vocabSize);
}

/** The tokens of an argument that no type checker has seen. Throws ArgumentError naming the first that is none. */
export function checkTokens(name: string, tokens: unknown, vocabSize: number): number[] {
  if (!Array.isArray(tokens))
    throw new ArgumentError(`${name} must be an array of token numbers, got ${typeof tokens}`);
  return tokens.map((token: unknown, i) => {
    if (typeof token === "number" && Number.isInteger(token) && token >= 0 && token < vocabSize) return token;
    const shown = typeof token === "string" ? JSON.stringify(token) : String(token);
    throw new ArgumentError(`${name}[${i}] = ${shown} is not a token: tokens are integers from 0 to ${vocabSize - 1}`);
  });
}

function conversationTokens(
  messages: readonly ChatMessage[],
  tokenizer: EngineTokenizer,
  templateVariables: Readonly<Record<string, unknown>> = {},
): number[] {
  messages.forEach((message, i) => {
    if (typeof message?.role === "string") return;
    throw new ArgumentError(`prompt[${i}] must be a message with a role and a content`);
  });
  const template = tokenizer.chatTemplate;
  if (template === undefined)
    throw new ArgumentError("prompt is a conversation, but this model has no chat template: give the text instead");
  const { tools, documents, ...variables } = templateVariables;
  const text = template.render(messages, {
    addGenerationPrompt: true,
    variables,
    ...(Array.isArray(tools) ? { tools } : {}),
    ...(Array.isArray(documents) ? { documents } : {}),
  });
  return tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: true });
}
