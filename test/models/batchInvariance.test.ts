/**
 * A token's logits are the same bits alone and in company, in any chunking, on any pages and any number of threads: every sum has one order.
 */

import { fileURLToPath } from "node:url";
import fc from "fast-check";
import { afterEach, describe, expect, it } from "vitest";
import { locate } from "../../src/models/formats/file.node.ts";
import type { SourceFolder } from "../../src/models/formats/index.ts";
import { type LoadedModel, type LoadModelOptions, loadModel } from "../../src/models/loadModel.ts";
import { type Checkpoint, checkpointFiles, memoryFolder, quantizedGguf } from "./randomModels.ts";
import { firstDifference, type Logits, randomIds, runAlone, runScheduled, type Schedule } from "./schedules.ts";

const open: LoadedModel[] = [];

afterEach(async () => {
  await Promise.all(open.splice(0).map(({ runner }) => runner.close()));
});

async function load(folder: SourceFolder, options: Partial<LoadModelOptions>, fileName?: string): Promise<LoadedModel> {
  const model = await loadModel(folder, fileName, {
    threads: 1,
    maxNumTokens: 1024,
    pageSize: 8,
    cacheType: "f32",
    activations: "f32",
    maxNumBatchedTokens: 512,
    ...options,
  });
  open.push(model);
  return model;
}

/** Sixteen others beside the first: lengths from one token to several pages, past the windows and the original contexts of the models. */
const lengths = [41, 1, 2, 7, 8, 9, 16, 17, 23, 31, 33, 3, 5, 70, 12, 1, 19];
const sequencesFor = ({ runner }: LoadedModel): number[][] =>
  lengths.map((length, i) => randomIds(length, runner.vocabSize, 100 + i));

const schedules: readonly Schedule[] = [
  { longestChunk: 1, seed: 1 },
  { longestChunk: 6, seed: 2 },
  { longestChunk: 25, seed: 3 },
  { longestChunk: 80, seed: 4 },
];

async function expectSame(model: LoadedModel, want: Logits, chosen: readonly Schedule[] = schedules): Promise<void> {
  for (const schedule of chosen) {
    const got = await runScheduled(model, sequencesFor(model), schedule);
    expect(firstDifference(got, want), JSON.stringify(schedule)).toBeUndefined();
  }
}

/** Logits that say something: finite, and different from one token to the next. */
function expectSound(logits: Logits): void {
  for (const rows of logits) for (const row of rows) expect(row.every(Number.isFinite)).toBe(true);
  expect(logits[0][40]).not.toEqual(logits[0][39]);
}

const gguf = quantizedGguf();

/** Each arithmetic with and without relaxed SIMD, on both kinds of pages, on 2 and 3 threads: every pair of these at least once. */
const variants = [
  { activations: "f32", relaxedSimd: true, cacheType: "f16", threads: 3 },
  { activations: "f32", relaxedSimd: false, cacheType: "f32", threads: 2 },
  { activations: "int16", relaxedSimd: true, cacheType: "f32", threads: 2 },
  { activations: "int16", relaxedSimd: false, cacheType: "f16", threads: 3 },
  { activations: "int8", relaxedSimd: true, cacheType: "f16", threads: 2 },
  { activations: "int8", relaxedSimd: false, cacheType: "f32", threads: 3 },
] as const;

it.each(variants)(
  "quantised weights, activations $activations, relaxed SIMD $relaxedSimd, pages $cacheType: alone, in company, on 1 and $threads threads",
  async ({ threads, relaxedSimd, ...rest }) => {
    // Where the machine has it: `true` would insist.
    const options = relaxedSimd ? rest : { ...rest, relaxedSimd };
    const folder = memoryFolder({ "model.gguf": gguf });
    const model = await load(folder, options);
    const want = await runAlone(model, sequencesFor(model));
    expectSound(want);
    await expectSame(model, want, [schedules[2]]);
    await expectSame(await load(folder, { ...options, threads }), want, [schedules[1]]);
  },
);

describe.each(["f32", "int16", "int8"] as const)("quantised weights, activations %s", (activations) => {
  it("any lengths, chunks and pages (property)", async () => {
    const model = await load(memoryFolder({ "model.gguf": gguf }), {
      activations,
      threads: 2,
      pageSize: 4,
      cacheType: "f16",
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 6 }),
        fc.integer({ min: 1, max: 31 }),
        fc.nat(),
        async (someLengths, longestChunk, seed) => {
          const sequences = someLengths.map((length, i) => randomIds(length, model.runner.vocabSize, seed + i));
          const want = await runAlone(model, sequences);
          expect(firstDifference(await runScheduled(model, sequences, { longestChunk, seed }), want)).toBeUndefined();
        },
      ),
      { numRuns: 6, seed: 7 },
    );
  });
});

const families: readonly Checkpoint[] = [
  "llama_gqa",
  "llama_rope3",
  "llama_mqa",
  "mistral_window",
  "qwen2",
  "qwen2_yarn",
  "qwen3",
  "gemma2",
  "gemma3",
  "phi3_longrope",
];

it.each(families)("%s: alone and in company, on one thread and two", async (family) => {
  const folder = memoryFolder(checkpointFiles(family));
  const model = await load(folder, {});
  const want = await runAlone(model, sequencesFor(model));
  expectSound(want);
  await expectSame(await load(folder, { threads: 2 }), want, [schedules[0], schedules[2]]);
});

it("the bundled model: alone and in company, as it is loaded by default", async () => {
  const { folder, fileName } = await locate(fileURLToPath(new URL("../../assets/tales-5m-q8_0.gguf", import.meta.url)));
  const options = { activations: "int8", cacheType: "f16", threads: 2, pageSize: 16 } as const;
  const model = await load(folder, options, fileName);
  const want = await runAlone(model, sequencesFor(model));
  expectSound(want);
  await expectSame(model, want, schedules.slice(1, 3));
});
