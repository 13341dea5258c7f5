import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type SentencePieceVocabulary, sentencePieceTokenizer, TokenType } from "./sentencePiece.ts";

const BYTES = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);

/** Ids: 0 unknown, 1 begin, 2 end, 3 to 258 the bytes if `hasBytes`, then user-defined tokens, then `words` from best to worst. */
function vocabulary(
  words: string[],
  userDefined: string[],
  options: { hasBytes?: boolean; spacePrefix?: boolean } = {},
) {
  const bytes = options.hasBytes === false ? [] : BYTES;
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...userDefined, ...words];
  const types = [
    TokenType.unknown,
    TokenType.control,
    TokenType.control,
    ...bytes.map(() => TokenType.byte),
    ...userDefined.map(() => TokenType.userDefined),
    ...words.map(() => TokenType.normal),
  ];
  const result: SentencePieceVocabulary = {
    tokens,
    types,
    scores: tokens.map((_, id) => -Math.max(0, id - (tokens.length - words.length))),
    unknownId: 0,
    bosId: 1,
    eosIds: [2],
    addBos: true,
    addEos: false,
    addSpacePrefix: options.spacePrefix ?? false,
    marksSpaces: true,
    chatTemplate: undefined,
  };
  return result;
}

/** The definition: look at all neighbours, merge the leftmost of the best, begin again. User-defined pieces first. */
function encodeByDefinition(words: string[], userDefined: string[], text: string): string[] {
  let symbols: { text: string; isFrozen: boolean }[] = [];
  for (let at = 0; at < text.length; ) {
    const defined = userDefined.filter((piece) => text.startsWith(piece, at)).sort((a, b) => b.length - a.length)[0];
    const piece = defined ?? String.fromCodePoint(text.codePointAt(at) ?? 0);
    symbols.push({ text: piece, isFrozen: defined !== undefined });
    at += piece.length;
  }
  for (;;) {
    let best = { rank: words.length, at: -1 };
    for (let at = 0; at + 1 < symbols.length; at++) {
      if (symbols[at].isFrozen || symbols[at + 1].isFrozen) continue;
      const rank = words.indexOf(symbols[at].text + symbols[at + 1].text);
      if (rank >= 0 && rank < best.rank) best = { rank, at };
    }
    if (best.at < 0) return symbols.map((symbol) => symbol.text);
    const merged = symbols[best.at].text + symbols[best.at + 1].text;
    symbols = [...symbols.slice(0, best.at), { text: merged, isFrozen: false }, ...symbols.slice(best.at + 2)];
  }
}

describe("sentencepiece", () => {
  it("merges the best pair first, of equal ones the leftmost", () => {
    const words = ["aa", "ab", "▁a", "aaa", "b▁a", "a", "b", "▁"];
    const tokenizer = sentencePieceTokenizer(vocabulary(words, []));
    const pieces = (text: string) =>
      tokenizer.encode(text, { addSpecialTokens: false }).map((id) => tokenizer.tokenText(id));
    expect(pieces("aaa")).toEqual(["aaa"]);
    expect(pieces("aaaa")).toEqual(["aa", "aa"]);
    expect(pieces("baab")).toEqual(["b", "aa", "b"]);
    expect(pieces("b a")).toEqual(["b a"]);
    expect(pieces("b ab")).toEqual(["b", " ", "ab"]);
  });

  it("equals the definition on random vocabularies and texts", () => {
    const piece = fc.string({ unit: fc.constantFrom("a", "b", " ", "é", "😀"), minLength: 2, maxLength: 4 });
    const text = fc.string({ unit: fc.constantFrom("a", "b", " ", "é", "😀"), maxLength: 30 });
    const words = fc.uniqueArray(piece, { maxLength: 12 });
    const property = fc.property(words, fc.uniqueArray(piece, { maxLength: 2 }), text, (merges, defined, input) => {
      const normal = [...merges.filter((word) => !defined.includes(word)), "a", "b", " ", "é", "😀"];
      const tokenizer = sentencePieceTokenizer(
        vocabulary(
          normal.map((word) => word.replaceAll(" ", "▁")),
          defined,
        ),
      );
      const ids = tokenizer.encode(input, { addSpecialTokens: false });
      expect(ids.map((id) => tokenizer.tokenText(id))).toEqual(encodeByDefinition(normal, defined, input));
      expect(tokenizer.decode(ids)).toBe(input);
    });
    fc.assert(property, { numRuns: 300, seed: 7 });
  });

  it("falls back to bytes, and decodes them one U+FFFD each where they are no text", () => {
    const tokenizer = sentencePieceTokenizer(vocabulary(["a", "▁"], []));
    const ids = tokenizer.encode("a\ufeff😀", { addSpecialTokens: false });
    expect(ids).toEqual([259, ...[0xef, 0xbb, 0xbf, 0xf0, 0x9f, 0x98, 0x80].map((byte) => 3 + byte)]);
    expect(tokenizer.decode(ids)).toBe("a\ufeff😀");
    expect(tokenizer.decode(ids.slice(0, -1))).toBe("a\ufeff\ufffd\ufffd\ufffd");
    expect(tokenizer.decode([3 + 0xf0, 259])).toBe("\ufffda");
    expect(tokenizer.encode("\ud800", { addSpecialTokens: false })).toEqual([3 + 0xef, 3 + 0xbf, 3 + 0xbd]);
  });

  it("encodes what it does not know as unknown where there are no byte tokens, a run as one", () => {
    const tokenizer = sentencePieceTokenizer(vocabulary(["a"], [], { hasBytes: false }));
    expect(tokenizer.encode("axya", { addSpecialTokens: false })).toEqual([3, 0, 3]);
  });

  it("puts a space in front, and takes it away again unless the text goes on", () => {
    const tokenizer = sentencePieceTokenizer(vocabulary(["▁a", "a", "▁"], [], { spacePrefix: true }));
    expect(tokenizer.encode("")).toEqual([1]);
    expect(tokenizer.encode("a a")).toEqual([1, 259, 259]);
    expect(tokenizer.encode("a<s>a", { parseSpecialTokens: true })).toEqual([1, 259, 1, 259]);
    expect(tokenizer.decode([1, 259, 259], { skipSpecialTokens: true })).toBe("a a");
    expect(tokenizer.decode([259, 259], { isContinuation: true })).toBe(" a a");
    expect(tokenizer.decode([1, 259])).toBe("<s>a");
  });

  it("recognises control tokens only on request, user-defined ones always", () => {
    const tokenizer = sentencePieceTokenizer(vocabulary(["<", "s", ">", "▁"], ["  ", "<b>"]));
    expect(tokenizer.encode("<s><b>  ", { addSpecialTokens: false })).toEqual([261, 262, 263, 260, 259]);
    expect(tokenizer.encode("<s><b>  ", { addSpecialTokens: false, parseSpecialTokens: true })).toEqual([1, 260, 259]);
    expect(tokenizer.decode([1, 260, 259], { skipSpecialTokens: true })).toBe("<b>  ");
  });

  it("does not grow slow or deep on long texts without a space", () => {
    const words = ["aaaaaaaa", "aaaa", "aa", "a"];
    const tokenizer = sentencePieceTokenizer(vocabulary(words.reverse().slice(1).concat("a"), []));
    expect(tokenizer.encode("a".repeat(80_000), { addSpecialTokens: false })).toHaveLength(10_000);
  });

  it("refuses arrays that do not fit together", () => {
    const fine = vocabulary(["a"], []);
    expect(() => sentencePieceTokenizer({ ...fine, scores: [1] })).toThrow("1 scores for 260 tokens");
    expect(() => sentencePieceTokenizer({ ...fine, types: [1] })).toThrow("1 types for 260 tokens");
    const types = [...Array.from(fine.types)];
    types[259] = TokenType.byte;
    expect(() => sentencePieceTokenizer({ ...fine, types })).toThrow('Token 259 is "a" and typed as a byte');
  });
});
