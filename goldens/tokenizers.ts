/**
 * Golden cases of tokenizers and chat templates (models/tokenizers): gemma.json, chat.json and the tokenizer.json folders.
 * Ids, texts and prompts must be equal; there is no tolerance.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { fileSource } from "../src/models/formats/file.node.ts";
import { openGguf } from "../src/models/formats/gguf.ts";
import { ChatTemplate, loadTokenizerJson, type Tokenizer, tokenizerFromGguf } from "../src/models/tokenizer/index.ts";
import type { GoldenFamily } from "./case.ts";

export interface TokenizerResult {
  /** The string or the template that was tried. */
  readonly name: string;
  readonly error?: string;
}

interface GemmaRow {
  readonly text: string;
  readonly ids: number[];
  readonly decoded: string;
  /** What llama.cpp gives where it differs: without control tokens, and with them. */
  readonly llamacpp_ids?: number[];
  readonly llamacpp_special_ids?: number[];
}

interface DecodeOnly {
  readonly ids: number[];
  readonly text: string;
}

interface GemmaFile {
  readonly cases: readonly GemmaRow[];
  readonly decode_only: readonly DecodeOnly[];
}

interface LibraryFile {
  readonly vocab_size: number;
  readonly cases: readonly {
    readonly text: string;
    readonly ids: number[];
    readonly ids_with_special: number[];
    readonly decoded: string;
    readonly decoded_skip_special: string;
  }[];
  readonly decode_only: readonly DecodeOnly[];
}

interface ChatFile {
  readonly bos_token: string;
  readonly eos_token: string;
  readonly templates: Readonly<Record<string, string>>;
  readonly cases: readonly {
    readonly template: string;
    readonly chat: string;
    readonly messages: readonly { readonly role: string }[];
    readonly add_generation_prompt: boolean;
    readonly tools?: readonly unknown[];
    readonly text?: string;
    readonly error?: string;
  }[];
}

const gemmaFile = fileURLToPath(new URL("../models/gemma-3-270m-q4_k_m.gguf", import.meta.url));

/** The group of tokenizers as the runner of all goldens calls it. */
export const golden: GoldenFamily = {
  name: "tokenizers",
  isDeviceFree: () => true,
  claims: (path) => kindOf(path) !== undefined,
  async run(path) {
    const results = await runTokenizerCase(path, {});
    const failures = results.filter((result) => result.error !== undefined);
    return { failures: failures.map(({ name, error }) => `${JSON.stringify(name)}: ${error}`), worst: 0 };
  },
};

/**
 * Runs a case (gemma.json, chat.json, a tokenizer's folder or the expected.json in it): one result for each string, id list and prompt.
 * `gguf`: the Gemma file, by default the one that the project's script fetches into models/.
 */
async function runTokenizerCase(path: string, options: { gguf?: string }): Promise<TokenizerResult[]> {
  const file = statSync(path).isDirectory() ? join(path, "expected.json") : path;
  switch (kindOf(file)) {
    case "gemma":
      return gemmaResults(readJson<GemmaFile>(file), await gemmaTokenizer(options.gguf ?? gemmaFile));
    case "chat":
      return chatResults(readJson<ChatFile>(file));
    case "library":
      return libraryResults(readJson<LibraryFile>(file), dirname(file));
    default:
      throw new Error(`${path} is no tokenizer case: expected gemma.json, chat.json or a folder with tokenizer.json`);
  }
}

function kindOf(path: string): "gemma" | "chat" | "library" | undefined {
  const name = basename(path);
  if (name === "gemma.json" || name === "chat.json") return name === "gemma.json" ? "gemma" : "chat";
  return name === "expected.json" && existsSync(join(dirname(path), "tokenizer_config.json")) ? "library" : undefined;
}

async function gemmaTokenizer(path: string): Promise<Tokenizer> {
  if (!existsSync(path)) throw new Error(`${path} does not exist: \`npm run fetch:gemma\` gets it`);
  const file = await openGguf(await fileSource(path));
  try {
    return tokenizerFromGguf(file.metadata);
  } finally {
    await file.close();
  }
}

function gemmaResults({ cases, decode_only }: GemmaFile, tokenizer: Tokenizer): TokenizerResult[] {
  const encode = (text: string, parseSpecialTokens: boolean) =>
    tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens });
  const texts = cases.map(({ text, ids, decoded, llamacpp_ids, llamacpp_special_ids }) =>
    compareAll(text, [
      [encode(text, false), ids],
      [tokenizer.decode(ids), decoded],
      [streamed(tokenizer, ids), decoded],
      // Where llama.cpp differs from sentencepiece without control tokens too, its ids are no yardstick.
      ...(llamacpp_special_ids && !llamacpp_ids ? [[encode(text, true), llamacpp_special_ids] as const] : []),
    ]),
  );
  return [...texts, ...decodeResults(decode_only, tokenizer)];
}

function libraryResults({ vocab_size, cases, decode_only }: LibraryFile, folder: string): TokenizerResult[] {
  const tokenizer = loadTokenizerJson(
    readJson<unknown>(join(folder, "tokenizer.json")),
    readJson<Record<string, unknown>>(join(folder, "tokenizer_config.json")),
  );
  const texts = cases.map(({ text, ids, ids_with_special, decoded, decoded_skip_special }) =>
    compareAll(text, [
      [tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: true }), ids],
      [tokenizer.encode(text, { parseSpecialTokens: true }), ids_with_special],
      [tokenizer.decode(ids), decoded],
      [streamed(tokenizer, ids), decoded],
      [tokenizer.decode(ids_with_special, { skipSpecialTokens: true }), decoded_skip_special],
    ]),
  );
  return [
    compareAll("vocab_size", [[tokenizer.vocabSize, vocab_size]]),
    ...texts,
    ...decodeResults(decode_only, tokenizer),
  ];
}

function decodeResults(cases: readonly DecodeOnly[], tokenizer: Tokenizer): TokenizerResult[] {
  return cases.map(({ ids, text }) =>
    compareAll(`ids ${ids}`, [
      [tokenizer.decode(ids), text],
      [streamed(tokenizer, ids), text],
    ]),
  );
}

function streamed(tokenizer: Tokenizer, ids: readonly number[]): string {
  const decoder = tokenizer.incrementalDecoder();
  return ids.map((id) => decoder.push(id)).join("") + decoder.flush();
}

function chatResults({ bos_token, eos_token, templates, cases }: ChatFile): TokenizerResult[] {
  return cases.map(({ template, chat, messages, add_generation_prompt, tools, text, error }) => {
    const name = `${template}/${chat}${add_generation_prompt ? " with generation prompt" : ""}`;
    const render = () =>
      new ChatTemplate(templates[template], { bos_token, eos_token }).render(messages, {
        addGenerationPrompt: add_generation_prompt,
        tools,
      });
    if (error === undefined) return compareAll(name, [[render(), text]]);
    try {
      return { name, error: `rendered ${JSON.stringify(render())}, but should have refused: ${error}` };
    } catch (thrown) {
      const message = thrown instanceof Error ? thrown.message : String(thrown);
      return message.endsWith(`: ${error}`) ? { name } : { name, error: `refused with "${message}", not "${error}"` };
    }
  });
}

/** One result: the first pair that is not equal. */
function compareAll(name: string, pairs: readonly (readonly [got: unknown, want: unknown])[]): TokenizerResult {
  for (const [got, want] of pairs) {
    if (JSON.stringify(got) !== JSON.stringify(want)) {
      return { name, error: `got ${JSON.stringify(got)}, want ${JSON.stringify(want)}` };
    }
  }
  return { name };
}

/** The goldens are the project's own files: their shape is taken as described in the goldens' README. */
function readJson<T>(path: string): T {
  return JSON.parse(readFileSync(path, "utf8"));
}
