/** Golden cases of tiny models: the checkpoints of models/hf, in both spellings of their config, and the files of models/gguf. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { nodeFolder } from "../src/models/formats/file.node.ts";
import type { SourceFolder } from "../src/models/formats/index.ts";
import type { Tolerance } from "./compare.ts";
import type { Judgement } from "./judgement.ts";
import { runTwice, withModel } from "./modelCase.ts";
import { keptRow, logSumExp, margin, meanNll, type Prompt } from "./promptRuns.ts";
import { readSafetensors } from "./safetensors.ts";

export interface TinyModelFile {
  readonly case: string;
  /** Absent: a checkpoint beside the case. */
  readonly file?: string;
  readonly tolerance: Tolerance;
  readonly prompts: readonly {
    readonly name: string;
    readonly ids: readonly number[];
    readonly logits: string;
    readonly logprobs: readonly number[];
    readonly greedy: readonly number[];
    readonly greedy_margins: readonly number[];
    readonly greedy_logprobs: readonly number[];
  }[];
  readonly text: { readonly ids: readonly number[]; readonly mean_nll: number; readonly logprobs: readonly number[] };
}

export function isTinyModel(json: unknown): json is TinyModelFile {
  return (
    typeof json === "object" &&
    json !== null &&
    "hidden" in json &&
    "prompts" in json &&
    "text" in json &&
    "case" in json
  );
}

export async function runTinyModel(path: string, file: TinyModelFile, judgement: Judgement): Promise<void> {
  const folder = await nodeFolder(dirname(path));
  if (file.file !== undefined) return judgeTinyModel(path, file, folder, "", judgement);
  for (const config of ["config.json", "config_v4.json"]) {
    if (!existsSync(join(dirname(path), config))) throw new Error(`${dirname(path)} has no ${config}`);
    await judgeTinyModel(path, file, withConfig(folder, config), `${config}, `, judgement);
  }
}

/** The folder as it would be if its config.json had the contents of `config`. */
function withConfig(folder: SourceFolder, config: string): SourceFolder {
  return { ...folder, open: (name) => folder.open(name === "config.json" ? config : name) };
}

async function judgeTinyModel(
  path: string,
  file: TinyModelFile,
  folder: SourceFolder,
  label: string,
  judgement: Judgement,
): Promise<void> {
  const { prompts: cases, text, tolerance } = file;
  const expected = readSafetensors(readFileSync(path.replace(/\.json$/, ".safetensors")));
  const prompts: Prompt[] = [
    ...cases.map(({ name, ids, greedy }) => ({ name, ids, numGreedy: greedy.length, firstKept: 0 })),
    { name: "text", ids: text.ids, numGreedy: 0, firstKept: 0 },
  ];
  const answers = await withModel(folder, file.file, prompts, "f32", (model) =>
    runTwice(model, prompts, label, judgement),
  );
  for (const [index, { name, ids, logits, logprobs, greedy, greedy_margins, greedy_logprobs }] of cases.entries()) {
    const answer = answers[index];
    const want = expected.get(logits);
    if (want === undefined) throw new Error(`the expected tensors lack ${logits}`);
    const rows = ids.map((_, position) => keptRow(answer, position));
    judgement.near(
      `${label}${name} logits`,
      rows.flatMap((row) => [...row]),
      want.values,
      tolerance,
    );
    judgement.near(`${label}${name} logprobs`, answer.logprobs, logprobs, tolerance);
    judgement.same(`${label}${name} greedy`, answer.greedy, greedy);
    const steps = greedy.map((_, i) => keptRow(answer, ids.length - 1 + i));
    judgement.near(`${label}${name} greedy margins`, steps.map(margin), greedy_margins, tolerance);
    judgement.near(
      `${label}${name} greedy logprobs`,
      steps.map((row, i) => row[greedy[i]] - logSumExp(row)),
      greedy_logprobs,
      tolerance,
    );
  }
  const { logprobs } = answers[cases.length];
  judgement.near(`${label}text logprobs`, logprobs, text.logprobs, tolerance);
  judgement.near(`${label}text mean_nll`, [meanNll(logprobs)], [text.mean_nll], tolerance);
}
