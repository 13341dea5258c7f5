/** Prefill of a prompt, whole and behind a cached context, held against the f32 matrix tile. */

import type { Cell } from "../result.ts";
import { AttentionLayers, type LayerSpec, llama3, storageName } from "./layers.ts";
import { repeat } from "./pages.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns, ratesOf, type Target } from "./rates.ts";
import { takeTurns } from "./turns.ts";

const headline = { tokens: 2048, ofTile: 0.5 };

interface Scenario {
  readonly queryLen: number;
  readonly kvLen: number;
  readonly layer: LayerSpec;
}

const whole = { queryLen: headline.tokens, kvLen: headline.tokens };
const scenarios: readonly Scenario[] = [
  { ...whole, layer: { ...llama3, storage: "f16" } },
  { ...whole, layer: { ...llama3, storage: "f32" } },
  { ...whole, layer: { ...llama3, storage: "i8" } },
  { ...whole, layer: { numQHeads: 8, numKvHeads: 8, headDim: 128, storage: "f16" } },
  { ...whole, layer: { numQHeads: 8, numKvHeads: 2, headDim: 64, storage: "f16" } },
  { queryLen: 256, kvLen: headline.tokens, layer: { ...llama3, storage: "f16" } },
  { queryLen: 512, kvLen: 512, layer: { numQHeads: 4, numKvHeads: 1, headDim: 256, storage: "f16" } },
];

export const prefill: Part = {
  name: "prefill",
  async run({ limits }: Ground): Promise<PartResult> {
    const rows: Cell[][] = [];
    const targets: Target[] = [];
    for (const [index, { queryLen, kvLen, layer }] of scenarios.entries()) {
      const layers = new AttentionLayers(limits.device, layer, repeat(1, queryLen, kvLen), { repeats: 1 });
      const { times, limits: reached } = await takeTurns(limits, [layers]);
      const { numQHeads, numKvHeads, headDim, storage } = layer;
      const heads = `${numQHeads}/${numKvHeads} x ${headDim}`;
      rows.push([queryLen, kvLen, heads, storageName(storage), ...rateCells(times[0], layers.cost, reached)]);
      if (index === 0) {
        targets.push({
          name: `prefill of ${queryLen} tokens, ${heads}, ${storageName(storage)}: of the f32 matrix tile`,
          measured: ratesOf(times[0], layers.cost, reached).ofTile,
          is: "at least",
          wanted: headline.ofTile,
        });
      }
      layers.release();
    }
    const columns = ["new tokens", "keys", "query/key heads x dimension", "pages", ...rateColumns];
    return { tables: [{ title: "Prefill, causal", columns, rows }], targets };
  },
};
