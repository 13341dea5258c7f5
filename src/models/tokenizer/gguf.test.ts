import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { byteLevelAlphabet, byteLevelText } from "./byteLevel.ts";
import { loadTokenizerJson, tokenizerFromGguf } from "./index.ts";

interface Fixture {
  tokenizer: {
    model: { vocab: Record<string, number>; merges: [string, string][] };
    added_tokens: { id: number }[];
  };
  cases: { text: string; ids: number[] }[];
}

function fixture(name: string): Fixture {
  return JSON.parse(readFileSync(new URL(`../../../test/fixtures/tokenizer/${name}.json`, import.meta.url), "utf8"));
}

/** The metadata that a GGUF file would hold for a byte-level tokenizer.json. */
function byteLevelMetadata({ tokenizer }: Fixture, pre: string): Map<string, unknown> {
  const tokens: string[] = [];
  for (const [piece, id] of Object.entries(tokenizer.model.vocab)) tokens[id] = piece;
  const controls = new Set(tokenizer.added_tokens.map((token) => token.id));
  return new Map<string, unknown>([
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.pre", pre],
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.token_type", Int32Array.from(tokens, (_, id) => (controls.has(id) ? 3 : 1))],
    ["tokenizer.ggml.merges", tokenizer.model.merges.map((pair) => pair.join(" "))],
    ["tokenizer.ggml.bos_token_id", 0],
    ["tokenizer.ggml.eos_token_id", 1],
  ]);
}

/** Single characters and bytes only, so that the words can be read off the merges that are missing. */
function splitterMetadata(pre: string, words: string[]): Map<string, unknown> {
  const merges: string[] = [];
  const tokens = [...byteLevelAlphabet];
  for (const word of words) {
    const spelled = byteLevelText(word);
    for (let length = 2; length <= spelled.length; length++) {
      const merged = spelled.slice(0, length);
      if (tokens.includes(merged)) continue;
      merges.push(`${spelled.slice(0, length - 1)} ${spelled[length - 1]}`);
      tokens.push(merged);
    }
  }
  return new Map<string, unknown>([
    ["tokenizer.ggml.model", "gpt2"],
    ["tokenizer.ggml.pre", pre],
    ["tokenizer.ggml.tokens", tokens],
    ["tokenizer.ggml.merges", merges],
  ]);
}

describe("tokenizer from GGUF metadata", () => {
  it.each([
    ["bpe_gpt2", "gpt-2", false],
    ["bpe_llama3", "llama-bpe", true],
  ])("%s with the split rule %s equals its tokenizer.json", (name, pre, addsBos) => {
    const source = fixture(name);
    const tokenizer = tokenizerFromGguf(byteLevelMetadata(source, pre));
    const json = loadTokenizerJson(source.tokenizer);
    for (const { text, ids } of source.cases) {
      expect(tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: true }), text).toEqual(ids);
      expect(tokenizer.encode(text), text).toEqual([
        ...(addsBos ? [0] : []),
        ...json.encode(text, { addSpecialTokens: false }),
      ]);
      expect(tokenizer.decode(ids)).toBe(json.decode(ids));
    }
  });

  it.each([
    ["gpt-2", " don't12345 x", [" don", "'t", "12345", " x"]],
    ["llama-bpe", " don'T12345 x", [" don", "'T", "123", "45", " x"]],
    ["qwen2", "(don't12 x", ["(don", "'t", "1", "2", " x"]],
    ["tekken", "camelCase12/x\n", ["camel", "Case", "1", "2", "/x", "\n"]],
    ["gpt-4o", "camelCase's 1234", ["camel", "Case's", " ", "123", "4"]],
    ["smollm", " a12", [" a", "1", "2"]],
    ["deepseek-v3", "ab1234 x\n", ["ab", "123", "4", " x", "\n"]],
    ["falcon", "a1234!?", ["a", "123", "4", "!?"]],
  ])("splits by the rule %s", (pre, text, words) => {
    const tokenizer = tokenizerFromGguf(splitterMetadata(pre, [text, ...words]));
    const pieces = tokenizer.encode(text).map((id) => tokenizer.tokenText(id));
    expect(pieces).toEqual(words);
  });

  it("composes characters first where the model's own tokenizer does", () => {
    const decomposed = "e\u0301";
    expect(tokenizerFromGguf(splitterMetadata("qwen2", ["é"])).encode(decomposed)).toHaveLength(1);
    expect(tokenizerFromGguf(splitterMetadata("llama-bpe", ["é"])).encode(decomposed)).toHaveLength(3);
  });

  it("keeps a token named __proto__", () => {
    const tokenizer = tokenizerFromGguf(splitterMetadata("gpt-2", ["proto", "__proto", "__"]));
    expect(tokenizer.decode(tokenizer.encode("__proto__ proto"))).toBe("__proto__ proto");
  });

  it("reads sentencepiece vocabularies with their defaults: begin token and a space in front", () => {
    const metadata = new Map<string, unknown>([
      ["tokenizer.ggml.model", "llama"],
      ["tokenizer.ggml.tokens", ["<unk>", "<s>", "</s>", "▁hi", "▁h", "i", "▁", "h", "<|im_end|>"]],
      ["tokenizer.ggml.scores", new Float32Array([0, 0, 0, -1, -2, -3, -4, -5, 0])],
      ["tokenizer.ggml.token_type", new Int32Array([2, 3, 3, 1, 1, 1, 1, 1, 3])],
      ["tokenizer.ggml.bos_token_id", 1],
      ["tokenizer.ggml.eos_token_id", 2],
      ["tokenizer.ggml.unknown_token_id", 0],
      ["tokenizer.chat_template", "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"],
    ]);
    const tokenizer = tokenizerFromGguf(metadata);
    expect(tokenizer.encode("hi hi")).toEqual([1, 3, 3]);
    expect(tokenizer.eosIds).toEqual([2, 8]);
    expect(tokenizer.chatTemplate?.render([{ role: "user", content: "hi" }])).toBe("<s>hi</s>");
    metadata.set("tokenizer.ggml.add_bos_token", false).set("tokenizer.ggml.add_space_prefix", false);
    expect(tokenizerFromGguf(metadata).encode("hi")).toEqual([7, 5]);
  });

  it("names the key that is wrong", () => {
    const metadata = (changes: [string, unknown][]) =>
      new Map<string, unknown>([...byteLevelMetadata(fixture("bpe_gpt2"), "gpt-2"), ...changes]);
    const load =
      (...changes: [string, unknown][]) =>
      () =>
        tokenizerFromGguf(metadata(changes));
    expect(load(["tokenizer.ggml.model", "rwkv"])).toThrow('tokenizer.ggml.model is "rwkv": supported are "llama"');
    expect(load(["tokenizer.ggml.model", undefined])).toThrow("tokenizer.ggml.model is missing");
    expect(load(["tokenizer.ggml.pre", "mystery"])).toThrow(
      'tokenizer.ggml.pre is "mystery": supported are default, gpt-2',
    );
    expect(load(["tokenizer.ggml.tokens", undefined])).toThrow("tokenizer.ggml.tokens is missing");
    expect(load(["tokenizer.ggml.tokens", 5])).toThrow("tokenizer.ggml.tokens is 5: it must be an array of strings");
    expect(load(["tokenizer.ggml.merges", ["ab"]])).toThrow('tokenizer.ggml.merges[0] is "ab"');
    expect(load(["tokenizer.ggml.token_type", new Int32Array(3)])).toThrow("3 entries for 600 tokens");
    expect(load(["tokenizer.ggml.bos_token_id", 600])).toThrow("bos_token_id is 600: the vocabulary has ids 0 to 599");
  });
});
