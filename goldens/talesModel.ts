/** The golden case of the bundled model: prompts through the network, and the validation text through the engine. */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gunzipSync } from "node:zlib";
import { Engine } from "../src/engine/index.ts";
import { nodeFolder } from "../src/models/formats/file.node.ts";
import type { Judgement } from "./judgement.ts";
import { runTwice, withModel } from "./modelCase.ts";
import { keptRow, margin, meanNll, type Prompt } from "./promptRuns.ts";

interface TalesFile {
  readonly file: string;
  readonly valid: { readonly windows_of: number; readonly mean_nll: number; readonly bits_per_byte: number };
  readonly prompts: readonly {
    readonly prompt: string;
    readonly ids: readonly number[];
    readonly logprobs: readonly number[];
    readonly last_top_ids: readonly number[];
    readonly last_top_logits: readonly number[];
    readonly greedy: readonly number[];
    readonly greedy_margins: readonly number[];
    readonly text: string;
  }[];
}

/** Both sides are sums in f32. */
const tolerance = { atol: 1e-4, rtol: 1e-5 };

/** Means over a quarter of a million tokens. */
const meanTolerance = { atol: 1e-5, rtol: 0 };

export function isTales(json: unknown): json is TalesFile {
  return typeof json === "object" && json !== null && "file" in json && "valid" in json && "prompts" in json;
}

export async function runTales(path: string, file: TalesFile, judgement: Judgement): Promise<void> {
  await judgePrompts(path, file, judgement);
  await judgeValidation(path, file, judgement);
}

async function judgePrompts(path: string, file: TalesFile, judgement: Judgement): Promise<void> {
  const prompts: Prompt[] = file.prompts.map(({ prompt, ids, greedy }) => ({
    name: JSON.stringify(prompt),
    ids,
    numGreedy: greedy.length,
    firstKept: 0,
  }));
  await withModel(await nodeFolder(dirname(path)), file.file, prompts, "f32", async (model) => {
    const { tokenizer } = model;
    if (tokenizer === undefined) throw new Error(`${file.file} holds no tokenizer`);
    const answers = await runTwice(model, prompts, "", judgement);
    for (const [index, expected] of file.prompts.entries()) {
      const { name, ids } = prompts[index];
      const answer = answers[index];
      judgement.same(`${name} tokens`, tokenizer.encode(expected.prompt), ids);
      judgement.near(`${name} logprobs`, answer.logprobs, expected.logprobs, tolerance);
      const last = keptRow(answer, ids.length - 1);
      const top = expected.last_top_ids.map((id) => last[id]);
      judgement.near(`${name} last top logits`, top, expected.last_top_logits, tolerance);
      judgement.same(`${name} greedy`, answer.greedy, expected.greedy);
      judgement.same(`${name} text`, [tokenizer.decode(answer.greedy)], [expected.text]);
      const margins = answer.greedy.map((_, i) => margin(keptRow(answer, ids.length - 1 + i)));
      judgement.near(`${name} greedy margins`, margins, expected.greedy_margins, tolerance);
    }
  });
}

/**
 * An end token stands before the first document and after every one, and after the empty one that follows the last separator: 279,733
 * tokens. They are cut into windows of 512 inputs that each predict the next token; what is left at the end is not scored.
 */
async function judgeValidation(path: string, { file, valid }: TalesFile, judgement: Judgement): Promise<void> {
  const text = gunzipSync(readFileSync(join(dirname(path), "..", "tales.valid.txt.gz"))).toString("utf8");
  const engine = await Engine.load(join(dirname(path), file), { threads: 2, activations: "f32", cacheType: "f32" });
  try {
    const tokens: number[] = [];
    for (const document of text.split("<|endoftext|>\n")) {
      for (const token of await engine.tokenize(document)) tokens.push(token);
    }
    tokens.push(tokens[0]);
    const numWindows = Math.floor((tokens.length - 1) / valid.windows_of);
    const completions = await Promise.all(
      Array.from({ length: numWindows }, (_, i) =>
        engine.complete({
          prompt: tokens.slice(i * valid.windows_of, (i + 1) * valid.windows_of + 1),
          maxTokens: 0,
          promptLogprobs: 0,
        }),
      ),
    );
    const logprobs = completions.flatMap(({ promptLogprobs = [] }) =>
      promptLogprobs.flatMap((entry) => (entry === undefined ? [] : [entry.logprob])),
    );
    if (logprobs.length !== numWindows * valid.windows_of) {
      judgement.fail(`validation: ${logprobs.length} tokens were scored, expected ${numWindows * valid.windows_of}`);
    }
    const nll = meanNll(logprobs);
    const bitsPerByte = ((nll / Math.LN2) * tokens.length) / new TextEncoder().encode(text).length;
    judgement.near("validation mean_nll", [nll], [valid.mean_nll], meanTolerance);
    judgement.near("validation bits per byte", [bitsPerByte], [valid.bits_per_byte], meanTolerance);
  } finally {
    await engine.close();
  }
}
