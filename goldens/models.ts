/**
 * The family of whole models. Each case runs on a CPU device of its own with exact activations and f32 pages: its prompts one after
 * another, then all at once in chunks, which must give the same bits. What is expected of each kind is in the file of that kind.
 */
import type { GoldenFamily } from "./case.ts";
import { isGemma, runGemma } from "./gemma.ts";
import { Judgement } from "./judgement.ts";
import { isStories, runStories } from "./stories.ts";
import { isTales, runTales } from "./talesModel.ts";
import { isTinyModel, runTinyModel } from "./tinyModels.ts";

/** Models as the runner of all goldens calls them. They have no float64 reference: whatever the target, they run on the CPU device, once. */
export const golden: GoldenFamily = {
  name: "models",
  isDeviceFree: () => true,
  claims: (_path, json) => isTinyModel(json) || isGemma(json) || isTales(json) || isStories(json),
  async run(path, json) {
    const judgement = new Judgement();
    if (isGemma(json)) await runGemma(path, json, judgement);
    else if (isTales(json)) await runTales(path, json, judgement);
    else if (isStories(json)) await runStories(path, json, judgement);
    else if (isTinyModel(json)) await runTinyModel(path, json, judgement);
    return judgement.outcome;
  },
};
