/**
 * `kvasir chat`: a conversation in the terminal, or with lines of standard input as messages. A model without a chat template cannot
 * converse; it continues what is written instead, and says so.
 */

import { createInterface } from "node:readline";
import { styleText } from "node:util";
import { text as ask, isCancel } from "@clack/prompts";
import type { Engine } from "../engine/index.ts";
import type { ChatMessage, GenerateChunk, GenerateRequest } from "../engine/types.ts";
import { defineCommand, modelOption, modelWord } from "./defineCommand.ts";
import { UsageError } from "./exit.ts";
import { withEngine } from "./loadEngine.ts";
import { splitModel } from "./modelWords.ts";
import { loadOptions, type ParsedOptions, readLoadOptions, readSampling, samplingOptions } from "./options.ts";
import { sampleFigures } from "./run.ts";
import { printable } from "./textLayout.ts";

export const chat = defineCommand({
  name: "chat",
  description: "a conversation; /clear begins anew, an empty line or Ctrl-C ends it",
  options: {
    MODEL: modelWord,
    model: modelOption,
    system: { type: "string", description: "what the model is told before the conversation", valueHint: "text" },
    ...samplingOptions,
    ...loadOptions,
  },
  async run(args, signal) {
    const { model, rest } = splitModel(args._, args.model as string | undefined);
    if (rest.length > 0) throw new UsageError(`chat takes no prompt, got "${rest[0]}"`);
    const sampling = readSampling(args);
    await withEngine(model, readLoadOptions(args), signal, async ({ engine }) => {
      const { name, hasChatTemplate, device } = engine.describe();
      console.error(styleText("dim", `${name} on ${device}`));
      if (!hasChatTemplate) {
        if (args.system !== undefined) throw new UsageError(`--system needs a chat template, which ${name} has not`);
        console.error("This model has no chat template: it continues what you write instead of answering.");
      }
      const conversation = new Conversation(hasChatTemplate, systemMessages(args));
      for await (const message of messages(signal)) {
        if (message === "/clear") conversation.clear();
        else await reply(engine, conversation, message, sampling, signal);
      }
    });
  },
});

function systemMessages(args: ParsedOptions): ChatMessage[] {
  return typeof args.system === "string" ? [{ role: "system", content: args.system }] : [];
}

/** What has been said. With a template it is a list of messages, without one it is one growing text. */
class Conversation {
  readonly #hasTemplate: boolean;
  readonly #beginning: readonly ChatMessage[];
  #messages: ChatMessage[] = [];
  #text = "";

  constructor(hasTemplate: boolean, beginning: readonly ChatMessage[]) {
    this.#hasTemplate = hasTemplate;
    this.#beginning = beginning;
  }

  clear(): void {
    this.#messages = [];
    this.#text = "";
  }

  /** Adds what the person wrote and gives the prompt for the answer. */
  ask(message: string): GenerateRequest["prompt"] {
    this.#messages.push({ role: "user", content: message });
    this.#text += message;
    return this.#hasTemplate ? [...this.#beginning, ...this.#messages] : this.#text;
  }

  answer(text: string): void {
    this.#messages.push({ role: "assistant", content: text });
    this.#text += `${text}\n`;
  }
}

async function reply(
  engine: Engine,
  conversation: Conversation,
  message: string,
  sampling: Omit<GenerateRequest, "prompt">,
  signal: AbortSignal,
): Promise<void> {
  const isTerminal = process.stdout.isTTY === true;
  let answer = "";
  let last: GenerateChunk | undefined;
  for await (const chunk of engine.generate({ ...sampling, prompt: conversation.ask(message), signal })) {
    answer += chunk.text;
    process.stdout.write(isTerminal ? printable(chunk.text) : chunk.text);
    last = chunk;
  }
  process.stdout.write("\n");
  conversation.answer(answer);
  if (isTerminal && last !== undefined) console.error(styleText("dim", sampleFigures(last)));
}

/** What the person writes, message by message, until the end. */
async function* messages(signal: AbortSignal): AsyncGenerator<string> {
  if (!process.stdin.isTTY) {
    for await (const line of createInterface({ input: process.stdin, signal })) if (line.trim() !== "") yield line;
    return;
  }
  for (;;) {
    const message = await ask({ message: "you", signal });
    if (isCancel(message) || message === undefined || message.trim() === "") return;
    yield message;
  }
}
