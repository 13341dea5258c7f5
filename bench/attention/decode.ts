/** Decoding, a new token for each sequence: contexts, batch sizes, storages and page layouts, held against reading memory. */

import type { KvLayout } from "../../src/attention/index.ts";
import type { PageStorage } from "../../src/ops/attention/index.ts";
import type { Cell } from "../result.ts";
import { AttentionLayers, llama3, storageName } from "./layers.ts";
import { repeat } from "./pages.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns, ratesOf, type Target } from "./rates.ts";
import { takeTurns } from "./turns.ts";

const headline = { storage: "f16", kvLen: 4096, ofReading: 0.6 } as const;
const contexts = [1024, headline.kvLen, 16384];
const batchSizes = [1, 8];
const int4: PageStorage = { kind: "grouped", bits: 4, groupSize: 32 };
const storages: readonly PageStorage[] = ["f32", headline.storage, "bf16", "f8e4m3", "i8", int4];
const { numQHeads, numKvHeads, headDim } = llama3;

/** As far as Gemma 3 270M goes in a chat: heads and contexts of the engine's own benchmarks. */
const gemma = { numQHeads: 4, numKvHeads: 1, headDim: 256, kvLen: 256, batchSizes: [1, 16] } as const;

export const decode: Part = {
  name: "decode",
  async run({ limits }: Ground): Promise<PartResult> {
    const rows: Cell[][] = [];
    const targets: Target[] = [];
    const measure = async (numSeqs: number, kvLen: number, storage: PageStorage, layout: KvLayout): Promise<void> => {
      const layers = new AttentionLayers(limits.device, { ...llama3, storage, layout }, repeat(numSeqs, 1, kvLen));
      const { times, limits: reached } = await takeTurns(limits, [layers]);
      rows.push([numSeqs, kvLen, storageName(storage), layout, ...rateCells(times[0], layers.cost, reached)]);
      if (storage === headline.storage && kvLen === headline.kvLen) {
        targets.push({
          name: `decode, ${numSeqs} of ${kvLen} keys, ${storage}, ${layout}: of reading memory`,
          measured: ratesOf(times[0], layers.cost, reached).ofReading,
          is: "at least",
          wanted: headline.ofReading,
        });
      }
      layers.release();
    };
    for (const storage of storages) {
      for (const numSeqs of batchSizes) {
        const isLarge = numSeqs > 1 && storage !== headline.storage;
        for (const kvLen of isLarge ? [headline.kvLen] : contexts) await measure(numSeqs, kvLen, storage, "NHD");
        await measure(numSeqs, headline.kvLen, storage, "HND");
      }
    }
    const title = `Decode, ${numQHeads} query and ${numKvHeads} key/value heads of ${headDim}`;
    return {
      tables: [
        { title, columns: ["sequences", "keys", "pages", "layout", ...rateColumns], rows },
        await gemmaTable({ limits }),
      ],
      targets,
    };
  },
};

async function gemmaTable({ limits }: Ground) {
  const rows: Cell[][] = [];
  for (const numSeqs of gemma.batchSizes) {
    for (const storage of ["f32", "f16"] as const) {
      const { kvLen, batchSizes: _, ...heads } = gemma;
      const layers = new AttentionLayers(limits.device, { ...heads, storage }, repeat(numSeqs, 1, kvLen));
      const { times, limits: reached } = await takeTurns(limits, [layers]);
      rows.push([numSeqs, kvLen, storageName(storage), ...rateCells(times[0], layers.cost, reached)]);
      layers.release();
    }
  }
  return {
    title: `Decode, ${gemma.numQHeads} query heads and 1 key/value head of ${gemma.headDim}`,
    columns: ["sequences", "keys", "pages", ...rateColumns],
    rows,
  };
}
