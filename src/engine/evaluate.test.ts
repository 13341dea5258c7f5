import { describe, expect, it } from "vitest";
import { alphabetBackend } from "../../test/fixtures/engine/alphabet.ts";
import { evaluateText, type Scorer } from "./evaluate.ts";
import type { GenerateRequest } from "./types.ts";

const BEGIN = 1;

/** A model that gives token t the log-probability -t / 100, and notes what it is asked. */
function scorer({ begin }: { begin: readonly number[] }) {
  const prompts: number[][] = [];
  const engine: Scorer = {
    tokenize: async (text) => [...begin, ...Array.from(text as string, (c) => c.charCodeAt(0))],
    describe: () => alphabetBackend().description,
    async complete({ prompt }: GenerateRequest) {
      const tokens = prompt as number[];
      prompts.push(tokens);
      const promptLogprobs = tokens.map((tokenId, i) =>
        i === 0 ? undefined : { tokenId, logprob: -tokenId / 100, top: [] },
      );
      return { text: "", samples: [], promptLogprobs };
    },
  };
  return { engine, prompts };
}

describe("evaluateText", () => {
  it("predicts every token but the first once, in windows that touch", async () => {
    const { engine, prompts } = scorer({ begin: [] });
    const result = await evaluateText(engine, "abcdefg", { window: 3 });
    expect(prompts.map((prompt) => String.fromCharCode(...prompt))).toEqual(["abcd", "defg"]);
    expect(result).toMatchObject({ numTokens: 7, numPredicted: 6, numBytes: 7 });
    expect(result.meanNll).toBeCloseTo((98 + 99 + 100 + 101 + 102 + 103) / 600, 12);
    expect(result.bitsPerByte).toBeCloseTo(result.meanNll / Math.LN2, 12);
  });

  it("begins every window with a begin token that is not an end token", async () => {
    const { engine, prompts } = scorer({ begin: [BEGIN] });
    const { numPredicted } = await evaluateText(engine, "abcdefg", { window: 3 });
    expect(prompts).toEqual([
      [BEGIN, 97, 98],
      [BEGIN, 99, 100, 101],
    ]);
    expect(numPredicted).toBe(5);
  });

  it("scores a text shorter than a window, and leaves out what follows the last whole window", async () => {
    const short = scorer({ begin: [] });
    expect((await evaluateText(short.engine, "abc", { window: 9 })).numPredicted).toBe(2);
    const long = scorer({ begin: [] });
    expect((await evaluateText(long.engine, "abcdefghijkl", { window: 5 })).numPredicted).toBe(10);
  });

  it("takes an end token at the beginning for what separates documents", async () => {
    const end = alphabetBackend().description.eosTokenIds[0];
    const { engine, prompts } = scorer({ begin: [end] });
    await evaluateText(engine, "ab\n<|endoftext|>\nc<|endoftext|>\n<|endoftext|>\n", { window: 99 });
    const second = Array.from("c<|endoftext|>\n", (c) => c.charCodeAt(0));
    expect(prompts).toEqual([[end, 97, 98, 10, end, ...second]]);
  });

  it("refuses a window longer than the context, and a text without anything to predict", async () => {
    const { engine } = scorer({ begin: [] });
    await expect(evaluateText(engine, "ab", { window: 4096 })).rejects.toThrow(
      "window = 4096 must be an integer from 1 to 4095",
    );
    await expect(evaluateText(engine, "a")).rejects.toThrow("text has 1 tokens");
  });
});
