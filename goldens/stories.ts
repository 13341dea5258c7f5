/** The golden case of stories260K, a trained model in the llama2.c format with its tokenizer. */
import { dirname } from "node:path";
import { nodeFolder } from "../src/models/formats/file.node.ts";
import type { Judgement } from "./judgement.ts";
import { runTwice, withModel } from "./modelCase.ts";
import { keptRow, margin, meanNll, type Prompt } from "./promptRuns.ts";

interface StoriesFile {
  readonly cases: readonly {
    readonly prompt: string;
    readonly tokens: readonly number[];
    readonly lastLogits: readonly number[];
    readonly promptLogProbs: readonly number[];
    readonly greedyTokens: readonly number[];
    readonly greedyText: string;
    readonly smallestGreedyMargin: number;
  }[];
  readonly text: { readonly text: string; readonly tokens: readonly number[]; readonly meanNegativeLogProb: number };
}

/** The file has seven digits of float64 results; ours are sums of f32. */
const tolerance = { atol: 2e-4, rtol: 2e-5 };

export function isStories(json: unknown): json is StoriesFile {
  return typeof json === "object" && json !== null && "about" in json && String(json.about).includes("stories260K.bin");
}

export async function runStories(path: string, file: StoriesFile, judgement: Judgement): Promise<void> {
  const prompts: Prompt[] = [
    ...file.cases.map(({ prompt, tokens, greedyTokens }) => ({
      name: JSON.stringify(prompt),
      ids: tokens,
      numGreedy: greedyTokens.length,
      firstKept: tokens.length - 1,
    })),
    { name: "text", ids: file.text.tokens, numGreedy: 0, firstKept: 0 },
  ];
  const folder = await nodeFolder(dirname(path));
  await withModel(folder, "stories260K.bin", prompts, "f32", async (model) => {
    const { tokenizer } = model;
    if (tokenizer === undefined) throw new Error(`no tokenizer was found beside ${path}`);
    judgement.same("text tokens", tokenizer.encode(file.text.text), file.text.tokens);
    const answers = await runTwice(model, prompts, "", judgement);
    for (const [index, expected] of file.cases.entries()) {
      const { name, ids } = prompts[index];
      const answer = answers[index];
      judgement.same(`${name} tokens`, tokenizer.encode(expected.prompt), ids);
      judgement.near(`${name} last logits`, keptRow(answer, ids.length - 1), expected.lastLogits, tolerance);
      judgement.near(`${name} logprobs`, answer.logprobs, expected.promptLogProbs, tolerance);
      judgement.same(`${name} greedy`, answer.greedy, expected.greedyTokens);
      const text = tokenizer.decode([...ids, ...answer.greedy], { skipSpecialTokens: true });
      judgement.same(`${name} text`, [text], [expected.greedyText]);
      const margins = answer.greedy.map((_, i) => margin(keptRow(answer, ids.length - 1 + i)));
      judgement.near(`${name} smallest margin`, [Math.min(...margins)], [expected.smallestGreedyMargin], tolerance);
    }
    const { logprobs } = answers[file.cases.length];
    judgement.near("text mean NLL", [meanNll(logprobs)], [file.text.meanNegativeLogProb], tolerance);
  });
}
