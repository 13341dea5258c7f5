/**
 * A mixed batch of decoding and prefilling sequences, ragged against padded to a rectangle, as JAX's kernel for several queries a sequence
 * has it: every sequence has as many queries as the longest.
 */

import type { SequenceLengths } from "../../src/ops/attention/index.ts";
import { AttentionLayers, llama3 } from "./layers.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns } from "./rates.ts";
import { takeTurns } from "./turns.ts";

/** The mixed list of JAX's tests of ragged paged attention: (new tokens, keys). */
export const mixedLengths: readonly SequenceLengths[] = [
  [5, 18],
  [1, 129],
  [120, 597],
  [1, 122],
  [1, 64],
  [32, 322],
  [251, 463],
  [1, 181],
  [1, 1107],
  [99, 123],
  [1, 31],
  [5, 18],
  [3, 1229],
  [117, 229],
  [1, 87],
  [1, 1328],
].map(([queryLen, kvLen]) => ({ queryLen, kvLen }));

/** What JAX adds to hidden logits. */
const maskValue = -0.7 * 3.4028234663852886e38;
const wanted = 5;

export const ragged: Part = {
  name: "ragged",
  async run({ limits }: Ground): Promise<PartResult> {
    const { device } = limits;
    const longest = Math.max(...mixedLengths.map(({ queryLen }) => queryLen));
    const rectangle = mixedLengths.map(({ kvLen }) => ({ queryLen: longest, kvLen }));
    const spec = { ...llama3, storage: "f16" } as const;
    const contenders = [
      { name: "ragged", layers: new AttentionLayers(device, spec, mixedLengths, { repeats: 1 }) },
      {
        name: `padded to ${longest} queries, hidden keys skipped`,
        layers: new AttentionLayers(device, spec, rectangle, { allowUnseeing: true, repeats: 1 }),
      },
      {
        name: `padded to ${longest} queries, hidden keys masked`,
        layers: new AttentionLayers(device, { ...spec, maskValue }, rectangle, { allowUnseeing: true, repeats: 1 }),
      },
    ];
    const turns = await takeTurns(
      limits,
      contenders.map(({ layers }) => layers),
    );
    const [first] = contenders;
    const relative = contenders.map(({ layers }, i) => ({
      time: turns.times[i].median / turns.times[0].median,
      operations: layers.cost.operations / first.layers.cost.operations,
    }));
    const rows = contenders.map(({ name, layers }, i) => [
      name,
      layers.lengths.reduce((sum, { queryLen }) => sum + queryLen, 0),
      ...rateCells(turns.times[i], layers.cost, turns.limits),
      relative[i].time,
      relative[i].operations,
    ]);
    for (const { layers } of contenders) layers.release();
    return {
      tables: [
        {
          title: `A mixed batch of ${mixedLengths.length} sequences`,
          columns: ["", "query rows", ...rateColumns, "times the ragged time", "times its operations"],
          rows,
        },
      ],
      targets: contenders.slice(1).map(({ name }, i) => ({
        name: `${name}: times the ragged time`,
        measured: relative[i + 1].time,
        is: "at least",
        wanted,
      })),
    };
  },
};
