/** What the golden cases of whole models share: loading one, and running its prompts alone and together. */
import type { SourceFolder } from "../src/models/formats/index.ts";
import { type LoadedModel, loadModel } from "../src/models/loadModel.ts";
import type { ActivationPrecision } from "../src/ops/matmul/index.ts";
import type { Judgement } from "./judgement.ts";
import { type Answer, cacheTokens, maxStepTokens, type Prompt, runAlone, runTogether } from "./promptRuns.ts";

/** Loads a model for `prompts` on two threads, with f32 pages, and closes it when `use` is done. */
export async function withModel<T>(
  folder: SourceFolder,
  fileName: string | undefined,
  prompts: readonly Prompt[],
  activations: ActivationPrecision,
  use: (model: LoadedModel) => Promise<T>,
): Promise<T> {
  const pageSize = 16;
  const model = await loadModel(folder, fileName, {
    threads: 2,
    maxNumTokens: cacheTokens(prompts, pageSize),
    pageSize,
    cacheType: "f32",
    activations,
    maxNumBatchedTokens: maxStepTokens,
  });
  try {
    return await use(model);
  } finally {
    await model.runner.close();
  }
}

/** The prompts one after another; judged: that all of them at once give the same bits. */
export async function runTwice(
  { runner }: LoadedModel,
  prompts: readonly Prompt[],
  label: string,
  judgement: Judgement,
): Promise<Answer[]> {
  const alone = await runAlone(runner, prompts);
  judgement.sameBits(`${label}together`, prompts, alone, await runTogether(runner, prompts));
  return alone;
}
