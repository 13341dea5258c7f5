import { Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { isPairMerges, jsonVocabulary, PairMerges, type PairMergesJson } from "./pairMerges.ts";

const letters = ["a", "b", "c", "é", "😀"];

/** Random merges over a small alphabet: each joins two pieces that are there by then. */
const mergeLists = fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 20 }).map((picks) => {
  const pieces = [...letters];
  const merges: [string, string][] = [];
  for (const [i, j] of picks) {
    const [left, right] = [pieces[i % pieces.length], pieces[j % pieces.length]];
    if ((left + right).length > 8) continue;
    merges.push([left, right]);
    if (!pieces.includes(left + right)) pieces.push(left + right);
  }
  return { type: "BPE", vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])), merges };
});

function encode(json: PairMergesJson, word: string): number[] {
  const ids: number[] = [];
  new PairMerges(jsonVocabulary(json, [])).encodeWord(word, ids);
  return ids;
}

describe("PairMerges", () => {
  it("equals the library's BPE on random merges and words", () => {
    const words = fc.string({ unit: fc.constantFrom(...letters), maxLength: 40 });
    const property = fc.property(mergeLists, words, fc.boolean(), (plain, word, ignore_merges) => {
      const json = { ...plain, ignore_merges };
      const nothing = { normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null, added_tokens: [] };
      const library = new LibraryTokenizer({ ...nothing, model: json }, {});
      // The first of two equal merges counts here as in the definition; the library takes the last.
      const isUnique = new Set(json.merges.map((pair) => pair.join(" "))).size === json.merges.length;
      fc.pre(isUnique);
      expect(encode(json, word)).toEqual(library.encode(word).ids);
    });
    fc.assert(property, { numRuns: 300, seed: 11 });
  });

  it("merges in the order of the list, of equal pairs the leftmost", () => {
    const vocab = { a: 0, b: 1, aa: 2, ab: 3, aab: 4 };
    expect(encode({ vocab, merges: ["a a", "a b", "aa b"] }, "aaab")).toEqual([2, 3]);
    expect(encode({ vocab, merges: ["a b", "a a", "aa b"] }, "aaab")).toEqual([2, 3]);
    expect(encode({ vocab, merges: ["a a", "aa b"] }, "aab")).toEqual([4]);
    expect(encode({ vocab, merges: [] }, "aab")).toEqual([0, 0, 1]);
    expect(encode({ vocab, merges: [], ignore_merges: true }, "aab")).toEqual([4]);
  });

  it("stands in for unknown characters with bytes, or the unknown token, or refuses", () => {
    const vocab = { a: 0, "<unk>": 1 };
    expect(encode({ vocab, merges: [], unk_token: "<unk>" }, "axya")).toEqual([0, 1, 1, 0]);
    expect(encode({ vocab, merges: [], unk_token: "<unk>", fuse_unk: true }, "axya")).toEqual([0, 1, 0]);
    expect(() => encode({ vocab, merges: [] }, "ax")).toThrow('no token for "x"');
    const bytes: Record<string, number> = {};
    for (let b = 0; b < 256; b++) bytes[`<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`] = b;
    expect(encode({ vocab: bytes, merges: [], byte_fallback: true }, "é")).toEqual([0xc3, 0xa9]);
  });

  it("refuses merges of what are no tokens, and ids that are none", () => {
    expect(() => encode({ vocab: { a: 0, b: 1 }, merges: ["a b"] }, "")).toThrow(
      'Merge 0 needs "ab", which is no token',
    );
    expect(() => encode({ vocab: { a: 0 }, merges: ["a"] }, "")).toThrow('Merge 0 is "a": a merge is two pieces');
    expect(() => jsonVocabulary({ vocab: { a: -1 }, merges: [] }, [])).toThrow("id -1");
    expect(() => jsonVocabulary({ vocab: {}, merges: [] }, [2 ** 30])).toThrow("id 1073741824");
  });

  it("leaves models with rarer features to the library", () => {
    expect(isPairMerges({ type: "BPE", vocab: {}, merges: [] })).toBe(true);
    expect(isPairMerges({ type: "BPE", vocab: {}, merges: [], end_of_word_suffix: "</w>" })).toBe(false);
    expect(isPairMerges({ type: "Unigram", vocab: [] })).toBe(false);
  });
});
