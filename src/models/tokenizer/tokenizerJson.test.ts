import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { FormatError } from "../../tensor/errors.ts";
import { loadTokenizerJson } from "./index.ts";

interface Fixture {
  tokenizer: { model: object; added_tokens: { id: number; content: string; special: boolean }[]; decoder: object };
  config: Record<string, unknown>;
  cases: { text: string; ids: number[]; ids_with_special: number[]; decoded: string; decoded_skip_special: string }[];
  decode_only: { ids: number[]; text: string }[];
}

function fixture(name: string): Fixture {
  return JSON.parse(readFileSync(new URL(`../../../test/fixtures/tokenizer/${name}.json`, import.meta.url), "utf8"));
}

describe.each(["bpe_gpt2", "bpe_llama3", "spm_llama"])("tokenizer.json: %s", (name) => {
  const { tokenizer: json, config, cases, decode_only: decodeOnly } = fixture(name);
  const tokenizer = loadTokenizerJson(json, config);

  it("encodes as the tokenizers library does", () => {
    for (const { text, ids, ids_with_special: withSpecial } of cases) {
      expect(tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens: true }), text).toEqual(ids);
      expect(tokenizer.encode(text, { parseSpecialTokens: true }), text).toEqual(withSpecial);
    }
  });

  it("decodes as the tokenizers library does", () => {
    for (const { text, ids, ids_with_special: withSpecial, decoded, decoded_skip_special: skipped } of cases) {
      expect(tokenizer.decode(ids), text).toBe(decoded);
      expect(tokenizer.decode(withSpecial, { skipSpecialTokens: true }), text).toBe(skipped);
    }
    for (const { ids, text } of decodeOnly) expect(tokenizer.decode(ids)).toBe(text);
  });

  it("streams what it decodes, token by token", () => {
    for (const { ids_with_special: ids } of cases) {
      for (const skipSpecialTokens of [false, true]) {
        const decoder = tokenizer.incrementalDecoder({ skipSpecialTokens });
        const chunks = ids.map((id) => decoder.push(id));
        expect(chunks.join("") + decoder.flush()).toBe(tokenizer.decode(ids, { skipSpecialTokens }));
      }
    }
  });

  it("takes control tokens in the text for text unless asked", () => {
    const special = json.added_tokens.find((token) => token.special && !token.content.includes("unk"));
    const text = `a${special?.content}b`;
    const plain = tokenizer.encode(text, { addSpecialTokens: false });
    expect(plain).not.toContain(special?.id);
    expect(tokenizer.decode(plain)).toBe(text);
    expect(tokenizer.encode(text, { parseSpecialTokens: true })).toContain(special?.id);
  });
});

describe("tokenizer.json", () => {
  const gpt2 = fixture("bpe_gpt2");

  it("knows begin, end and control tokens", () => {
    const llama3 = loadTokenizerJson(fixture("bpe_llama3").tokenizer, fixture("bpe_llama3").config);
    expect([llama3.bosId, llama3.eosIds, llama3.vocabSize]).toEqual([0, [1], 560]);
    expect(llama3.specialTokens.get("<|eot_id|>")).toBe(1);
    const chatml = loadTokenizerJson(gpt2.tokenizer, gpt2.config);
    expect([chatml.bosId, chatml.eosIds]).toEqual([undefined, [0, 2]]);
    expect(chatml.chatTemplate?.render([{ role: "user", content: "hi" }])).toContain("<|im_start|>user\nhi<|im_end|>");
  });

  it("gives the bytes of a token", () => {
    const tokenizer = loadTokenizerJson(gpt2.tokenizer, gpt2.config);
    const ids = tokenizer.encode("é the");
    expect(ids.flatMap((id) => [...tokenizer.tokenBytes(id)])).toEqual([0xc3, 0xa9, 0x20, 0x74, 0x68, 0x65]);
    expect(tokenizer.tokenText(tokenizer.encode(" the")[0])).toBe(" the");
    expect(tokenizer.tokenText(0)).toBe("<|endoftext|>");
  });

  it("matches added tokens that are no control tokens, with their white space, in any text", () => {
    const added = { id: 600, content: "<tool>", special: false, normalized: false, lstrip: true, rstrip: true };
    const word = { id: 601, content: "zz", special: false, normalized: false, single_word: true };
    const json = { ...gpt2.tokenizer, added_tokens: [...gpt2.tokenizer.added_tokens, added, word] };
    const tokenizer = loadTokenizerJson(json);
    const [x] = tokenizer.encode("x");
    expect(tokenizer.encode("x \n<tool>  x")).toEqual([x, 600, x]);
    expect(tokenizer.encode("zz")).toEqual([601]);
    expect(tokenizer.encode("zzx")).not.toContain(601);
  });

  it("lets ids without a token decode to nothing and refuses what is no id", () => {
    const tokenizer = loadTokenizerJson(gpt2.tokenizer, gpt2.config);
    expect(tokenizer.decode([12345])).toBe("");
    expect(() => tokenizer.decode([-1])).toThrow("id = -1 is not a token id");
    expect(() => tokenizer.tokenBytes(1.5)).toThrow("id = 1.5 is not a token id");
  });

  it("refuses files it cannot run", () => {
    expect(() => loadTokenizerJson([])).toThrow(FormatError);
    expect(() => loadTokenizerJson({ ...gpt2.tokenizer, decoder: { type: "CTC" } })).toThrow('"type":"CTC"');
    expect(() => loadTokenizerJson({ ...gpt2.tokenizer, decoder: null })).toThrow("no decoder");
    const model = { type: "Guess", vocab: null };
    expect(() => loadTokenizerJson({ ...gpt2.tokenizer, model })).toThrow("cannot be built");
  });
});
