/**
 * The golden case of a real model, Gemma 3 270M: with exact activations it must give the expected logits and texts. With activations of 8
 * and 16 bits its distance from its own exact result is printed, and may not exceed that of llama.cpp, whose answers lie beside the case.
 */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { locate } from "../src/models/formats/file.node.ts";
import type { ActivationPrecision } from "../src/ops/matmul/index.ts";
import type { Judgement } from "./judgement.ts";
import { runTwice, withModel } from "./modelCase.ts";
import { type Answer, keptRow, logSumExp, meanNll, type Prompt, runAlone } from "./promptRuns.ts";
import { readSafetensors } from "./safetensors.ts";

interface GemmaFile {
  readonly case: "gemma3_270m";
  readonly tolerance: { readonly logits_atol: number; readonly mean_nll_atol: number };
  readonly prompts: readonly {
    readonly name: string;
    readonly ids: readonly number[];
    readonly last_positions: number;
    readonly top_ids: string;
    readonly top_logits: string;
    readonly logsumexp: string;
    readonly logprobs: readonly number[];
    readonly mean_nll: number;
    readonly greedy: readonly number[];
    readonly greedy_margins: readonly number[];
  }[];
}

/** llama.cpp's answers to the same prompts; its best tokens of each of the last positions are its own. */
interface LlamaCppFile {
  readonly prompts: readonly {
    readonly name: string;
    readonly logprobs: readonly number[];
    readonly mean_nll: number;
    readonly top_ids: readonly (readonly number[])[];
    readonly top_logits: readonly (readonly number[])[];
  }[];
}

/** How far an answer is from the exact one. */
interface Distance {
  readonly logits: number;
  readonly logprobs: number;
  readonly meanNll: number;
}

/** Step up to which greedy texts are compared: the first whose best two logits are nearer than this. */
const leastMargin = 0.02;

export function isGemma(json: unknown): json is GemmaFile {
  return typeof json === "object" && json !== null && "case" in json && json.case === "gemma3_270m";
}

/** The file is models/gemma-3-270m-q4_k_m.gguf, or the path in the environment variable KVASIR_GEMMA. */
export async function runGemma(path: string, file: GemmaFile, judgement: Judgement): Promise<void> {
  const modelPath =
    process.env.KVASIR_GEMMA ?? fileURLToPath(new URL("../models/gemma-3-270m-q4_k_m.gguf", import.meta.url));
  if (!existsSync(modelPath)) throw new Error(`${modelPath} does not exist: \`npm run fetch:gemma\` gets it`);
  const { folder, fileName } = await locate(modelPath);
  const prompts: Prompt[] = file.prompts.map(({ name, ids, last_positions, greedy }) => ({
    name,
    ids,
    numGreedy: greedy.length,
    firstKept: ids.length - last_positions,
  }));
  const exact = await withModel(folder, fileName, prompts, "f32", (model) =>
    runTwice(model, prompts, "f32 ", judgement),
  );
  judgeExact(path, file, exact, judgement);

  const llamaCpp: LlamaCppFile = JSON.parse(readFileSync(join(dirname(path), "llamacpp.json"), "utf8"));
  const topIds = readTopIds(path, file);
  const theirs = llamaCpp.prompts.map((prompt, index) =>
    distanceOfLlamaCpp(prompt, prompts[index], exact[index], topIds[index]),
  );
  const prefills = prompts.map((prompt) => ({ ...prompt, numGreedy: 0 }));
  for (const activations of ["int8", "int16"] satisfies ActivationPrecision[]) {
    const rounded = await withModel(folder, fileName, prefills, activations, (model) =>
      runAlone(model.runner, prefills),
    );
    const ours = rounded.map((answer, index) => distance(answer, prompts[index], exact[index], topIds[index]));
    judgeDistances(activations, prompts, ours, theirs, judgement);
  }
}

function judgeExact(path: string, file: GemmaFile, answers: readonly Answer[], judgement: Judgement): void {
  const expected = readSafetensors(readFileSync(path.replace(/\.json$/, ".safetensors")));
  const { logits_atol, mean_nll_atol } = file.tolerance;
  const tolerance = { atol: logits_atol, rtol: 0 };
  for (const [index, prompt] of file.prompts.entries()) {
    const { name, ids, last_positions, greedy, greedy_margins } = prompt;
    const answer = answers[index];
    const [topIds, topLogits, logsumexp] = [prompt.top_ids, prompt.top_logits, prompt.logsumexp].map((tensor) => {
      const found = expected.get(tensor);
      if (found === undefined) throw new Error(`the expected tensors lack ${tensor}`);
      return found;
    });
    const width = topIds.shape[1];
    const rows = Array.from({ length: last_positions }, (_, i) => keptRow(answer, ids.length - last_positions + i));
    const got = Array.from(topIds.values, (id, i) => rows[Math.floor(i / width)][id]);
    judgement.near(`${name} top logits`, got, topLogits.values, tolerance);
    judgement.near(`${name} logsumexp`, rows.map(logSumExp), logsumexp.values, tolerance);
    judgement.near(`${name} logprobs`, answer.logprobs, prompt.logprobs, tolerance);
    judgement.near(`${name} mean_nll`, [meanNll(answer.logprobs)], [prompt.mean_nll], { atol: mean_nll_atol, rtol: 0 });
    const unsure = greedy_margins.findIndex((value) => value < leastMargin);
    judgement.same(`${name} greedy`, answer.greedy, greedy, unsure < 0 ? greedy.length : unsure);
  }
}

/** The expected best ids of each prompt's last positions. */
function readTopIds(path: string, file: GemmaFile): number[][][] {
  const expected = readSafetensors(readFileSync(path.replace(/\.json$/, ".safetensors")));
  return file.prompts.map(({ top_ids, last_positions }) => {
    const flat = [...(expected.get(top_ids)?.values ?? [])];
    const width = flat.length / last_positions;
    return Array.from({ length: last_positions }, (_, i) => flat.slice(i * width, (i + 1) * width));
  });
}

function distance(answer: Answer, prompt: Prompt, exact: Answer, topIds: readonly number[][]): Distance {
  const differences = topIds.flatMap((ids, i) => {
    const [got, want] = [answer, exact].map((one) => keptRow(one, prompt.firstKept + i));
    return ids.map((id) => Math.abs(got[id] - want[id]));
  });
  return { logits: Math.max(...differences), ...distanceOfScores(answer.logprobs, exact.logprobs) };
}

/** Over those of the expected best ids that llama.cpp's file holds too: no more than what ours is measured over. */
function distanceOfLlamaCpp(
  theirs: LlamaCppFile["prompts"][number],
  prompt: Prompt,
  exact: Answer,
  topIds: readonly number[][],
): Distance {
  const differences = theirs.top_ids.flatMap((ids, i) => {
    const row = keptRow(exact, prompt.firstKept + i);
    return ids.flatMap((id, at) => (topIds[i].includes(id) ? [Math.abs(theirs.top_logits[i][at] - row[id])] : []));
  });
  return { logits: Math.max(...differences), ...distanceOfScores(theirs.logprobs, exact.logprobs) };
}

function distanceOfScores(got: readonly number[], want: readonly number[]): Omit<Distance, "logits"> {
  return {
    logprobs: Math.max(...want.map((value, t) => Math.abs(got[t] - value))),
    meanNll: Math.abs(meanNll(got) - meanNll(want)),
  };
}

/**
 * Prints the table, to the error output so that --json stays readable by programs, and judges the largest distance over the prompts: which
 * of two roundings happens to be nearer on one short prompt is chance.
 */
function judgeDistances(
  activations: ActivationPrecision,
  prompts: readonly Prompt[],
  ours: readonly Distance[],
  theirs: readonly Distance[],
  judgement: Judgement,
): void {
  const columns = [
    ["logits", "logit difference"],
    ["logprobs", "log-probability difference"],
    ["meanNll", "NLL difference"],
  ] as const;
  console.error(`gemma3_270m, activations ${activations} against f32 (in brackets: llama.cpp against f32)`);
  for (const [index, { name }] of prompts.entries()) {
    const cells = columns.map(
      ([key, title]) => `${title} ${ours[index][key].toFixed(5)} (${theirs[index][key].toFixed(5)})`,
    );
    console.error(`  ${name.padEnd(8)} ${cells.join("  ")}`);
  }
  for (const [key, title] of columns) {
    const [own, other] = [ours, theirs].map((distances) => Math.max(...distances.map((distance) => distance[key])));
    if (!(own <= other)) {
      judgement.fail(
        `${activations}: largest ${title} ${own.toFixed(5)} is larger than llama.cpp's ${other.toFixed(5)}`,
      );
    }
  }
}
