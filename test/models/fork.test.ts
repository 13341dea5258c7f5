/** Sequences that part: pages copied before they are written to, and which sequences may share pages at all. */

import { afterEach, describe, expect, it } from "vitest";
import { type LoadedModel, loadModel } from "../../src/models/loadModel.ts";
import { type Checkpoint, checkpointFiles, memoryFolder } from "./randomModels.ts";
import { firstDifference, randomIds, runAlone, runChunks } from "./schedules.ts";

const open: LoadedModel[] = [];

afterEach(async () => {
  await Promise.all(open.splice(0).map(({ runner }) => runner.close()));
});

async function load(family: Checkpoint, cacheType: "f32" | "f16" = "f32"): Promise<LoadedModel> {
  const model = await loadModel(memoryFolder(checkpointFiles(family)), undefined, {
    threads: 2,
    maxNumTokens: 256,
    pageSize: 8,
    cacheType,
    activations: "f32",
    maxNumBatchedTokens: 128,
  });
  open.push(model);
  return model;
}

describe.each(["f32", "f16"] as const)("copied pages, %s", (cacheType) => {
  it.each(["llama_gqa", "mistral_window"] as const)(
    "%s: two sequences that part in the middle of a page equal two that never met",
    async (family) => {
      const model = await load(family, cacheType);
      const { runner } = model;
      const stem = randomIds(20, runner.vocabSize, 1);
      const [left, right] = [2, 3].map((seed) => [...stem, ...randomIds(15, runner.vocabSize, seed)]);
      const want = await runAlone(model, [left, right]);

      const pages = { left: [9, 4, 17, 1, 30], right: [9, 4, 23, 6, 11] };
      const part = (ids: number[], own: number[], first: number, end: number) => ({
        sequence: { ids, pages: own, prompt: { ids } },
        first,
        end,
      });
      const [stemRows] = await runChunks(runner, [part(left, pages.left, 0, stem.length)]);
      runner.copyPages([{ from: 17, to: 23 }]);
      const [leftRows, rightRows] = await runChunks(runner, [
        part(left, pages.left, stem.length, left.length),
        part(right, pages.right, stem.length, right.length),
      ]);
      expect(
        firstDifference(
          [
            [...stemRows, ...leftRows],
            [...stemRows, ...rightRows],
          ],
          want,
        ),
      ).toBeUndefined();
    },
  );

  it("copies are made in the order given, so that a page can be passed on and then replaced", async () => {
    const model = await load("llama_gqa", cacheType);
    const { runner } = model;
    const [first, second] = [1, 2].map((seed) => randomIds(10, runner.vocabSize, seed));
    const want = await runAlone(model, [first, second]);
    const on = (ids: number[], own: number[], begin: number, end: number) => ({
      sequence: { ids, pages: own, prompt: { ids } },
      first: begin,
      end,
    });
    await runChunks(runner, [on(first, [0, 1], 0, 8), on(second, [2, 3], 0, 8)]);
    // Swaps pages 0 and 2 through page 5.
    runner.copyPages([{ from: 0, to: 5 }]);
    runner.copyPages([
      { from: 2, to: 0 },
      { from: 5, to: 2 },
    ]);
    const [firstRows, secondRows] = await runChunks(runner, [on(first, [2, 1], 8, 10), on(second, [0, 3], 8, 10)]);
    expect(firstDifference([firstRows, secondRows], [want[0].slice(8), want[1].slice(8)])).toBeUndefined();
  });
});

describe("which prompts may share pages", () => {
  it("all, where positions do not depend on the prompt's length", async () => {
    const { runner } = await load("llama_rope3");
    expect(runner.cacheVariant?.(1)).toBe(runner.cacheVariant?.(200));
  });

  it("longrope: those on the same side of the original context, which compute other keys than the others", async () => {
    const model = await load("phi3_longrope");
    const { runner } = model;
    const [longest, shortest] = [64, 65];
    expect(runner.cacheVariant?.(1)).toBe(runner.cacheVariant?.(longest));
    expect(runner.cacheVariant?.(shortest)).toBe(runner.cacheVariant?.(250));
    expect(runner.cacheVariant?.(longest)).not.toBe(runner.cacheVariant?.(shortest));

    const ids = randomIds(shortest, runner.vocabSize, 1);
    const [short, long] = await runAlone(model, [ids.slice(0, longest), ids]);
    expect(short[longest - 1]).not.toEqual(long[longest - 1]);
    const [alsoLong] = await runChunks(runner, [
      { sequence: { ids, pages: [3, 1, 2, 5, 8, 7, 6, 4, 9], prompt: { ids } }, first: 0, end: longest },
    ]);
    expect(firstDifference([alsoLong], [long.slice(0, longest)])).toBeUndefined();
  });

  it("longrope: a sequence keeps its rotation when it grows past the original context", async () => {
    const { runner } = await load("phi3_longrope");
    const ids = randomIds(80, runner.vocabSize, 1);
    const prompt = { ids: ids.slice(0, 60) };
    const pages = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    const whole = await runChunks(runner, [{ sequence: { ids, pages, prompt }, first: 0, end: 80 }]);
    const grown = await runChunks(runner, [{ sequence: { ids, pages, prompt }, first: 0, end: 60 }]);
    for (let position = 60; position < 80; position++) {
      const [rows] = await runChunks(runner, [
        { sequence: { ids, pages, prompt }, first: position, end: position + 1 },
      ]);
      grown[0].push(...rows);
    }
    expect(firstDifference(grown, whole)).toBeUndefined();
  });
});
