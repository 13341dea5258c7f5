/**
 * The vocabulary of Gemma 3 (262,144 pieces), where `npm run fetch:gemma` has put the file; all of its goldens are run by `npm run goldens`.
 */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { fileSource } from "../formats/file.node.ts";
import { openGguf } from "../formats/gguf.ts";
import { tokenizerFromGguf } from "./index.ts";

const path = fileURLToPath(new URL("../../../models/gemma-3-270m-q4_k_m.gguf", import.meta.url));

describe.skipIf(!existsSync(path))("the tokenizer of Gemma 3", () => {
  it("encodes as sentencepiece does", async () => {
    const file = await openGguf(await fileSource(path));
    const tokenizer = tokenizerFromGguf(file.metadata);
    await file.close();
    expect([tokenizer.vocabSize, tokenizer.bosId, tokenizer.eosIds]).toEqual([262144, 2, [1, 106]]);
    const encode = (text: string, parseSpecialTokens = false) =>
      tokenizer.encode(text, { addSpecialTokens: false, parseSpecialTokens });
    expect(tokenizer.encode("hello world")).toEqual([2, 23391, 1902]);
    expect(encode("   \n\n\t")).toEqual([139, 108, 255968]);
    expect(encode("\ufeffbyte order mark")).toEqual([237922, 12247, 1900, 1686]);
    expect(encode("▁▁a▁b")).toEqual([138, 236746, 518]);
    expect(encode("text<bos>more")).toEqual([1005, 236820, 46757, 236813, 5576]);
    expect(encode("text<bos>more", true)).toEqual([1005, 2, 5576]);
    expect(tokenizer.decode([251329, 236743, 464, 371])).toBe("Ⅷ \ufffd\ufffd");
  });
});
