/** What planning a step costs on the host, beside the attention of the layers that use the plan. */

import { type Cell, type Spread, spread } from "../result.ts";
import { AttentionLayers, llama3 } from "./layers.ts";
import { repeat } from "./pages.ts";
import { mixedLengths } from "./ragged.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns, type Target } from "./rates.ts";
import { takeTurns } from "./turns.ts";

const LAYERS = 16;
const PLANS = 51;
const wanted = 0.01;
const batches = [
  { name: `mixed batch of ${mixedLengths.length} sequences`, lengths: mixedLengths },
  { name: "64 sequences of 4096 keys, decode", lengths: repeat(64, 1, 4096) },
];

export const planning: Part = {
  name: "planning",
  async run({ limits }: Ground): Promise<PartResult> {
    const rows: Cell[][] = [];
    const targets: Target[] = [];
    for (const { name, lengths } of batches) {
      const layers = new AttentionLayers(limits.device, { ...llama3, storage: "f16" }, lengths);
      const { times, limits: reached } = await takeTurns(limits, [layers]);
      for (const checkPages of [true, false]) {
        const plan = timePlans(layers, checkPages);
        const share = plan.median / (LAYERS * times[0].median);
        const checks = checkPages ? "page ids checked" : "page ids not checked";
        rows.push([name, checks, plan, share, ...rateCells(times[0], layers.cost, reached)]);
        const target = `planning, ${name}, ${checks}: of the attention of ${LAYERS} layers`;
        targets.push({ name: target, measured: share, is: "at most", wanted });
      }
      layers.release();
    }
    const columns = ["", "", "plan, ms", `of ${LAYERS} layers`, ...rateColumns.map((name) => `a layer: ${name}`)];
    return { tables: [{ title: "Planning", columns, rows }], targets };
  },
};

function timePlans(layers: AttentionLayers, checkPages: boolean): Spread {
  const batch = layers.batch();
  const times = Array.from({ length: PLANS }, () => {
    const start = performance.now();
    layers.attention.plan(batch, { checkPages });
    return performance.now() - start;
  });
  return spread(times);
}
