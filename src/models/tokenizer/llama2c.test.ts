import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { tokenizerFromLlama2c } from "./index.ts";

const folder = new URL("../../../test/fixtures/tokenizer/", import.meta.url);
const file = new Uint8Array(readFileSync(new URL("tok512.bin", folder)));

interface Expected {
  cases: { prompt: string; tokens: number[]; greedyTokens: number[]; greedyText: string }[];
  text: { text: string; tokens: number[] };
}

describe("llama2.c tokenizer", () => {
  const expected: Expected = JSON.parse(readFileSync(new URL("tok512.json", folder), "utf8"));

  it("encodes and decodes as stories260K expects", () => {
    const tokenizer = tokenizerFromLlama2c(file, 512);
    for (const { prompt, tokens, greedyTokens, greedyText } of expected.cases) {
      expect(tokenizer.encode(prompt)).toEqual(tokens);
      expect(tokenizer.decode([...tokens, ...greedyTokens], { skipSpecialTokens: true })).toBe(greedyText);
    }
    expect(tokenizer.encode(expected.text.text)).toEqual(expected.text.tokens);
  });

  it("refuses a file that does not hold the vocabulary", () => {
    expect(() => tokenizerFromLlama2c(file.subarray(0, 4000), 512)).toThrow(/Token \d+ has|ends at token/);
    expect(() => tokenizerFromLlama2c(file, 511)).toThrow("bytes more than its 511 tokens take");
    expect(() => tokenizerFromLlama2c(file, 32)).toThrow("vocabSize = 32");
  });
});
