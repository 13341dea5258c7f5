/**
 * Multi-head latent attention of one new token: absorbed, as BatchMLAPagedAttention runs it, against the vanilla form, which rebuilds keys
 * and values of every head from the whole latent cache in each step.
 */

import type { Cell } from "../result.ts";
import { AbsorbedLayers, pageSize, storage } from "./absorbedMla.ts";
import { type Ground, type Part, type PartResult, rateCells, rateColumns, type Target } from "./rates.ts";
import { takeTurns } from "./turns.ts";
import { headsAtOnce, VanillaMla } from "./vanillaMla.ts";

/** DeepSeek V2 and V3. */
const deepseek = { kvLoraRank: 512, qkRopeHeadDim: 64, qkNopeHeadDim: 128, vHeadDim: 128 } as const;
const headCounts = [16, 128];
const contexts = [1024, 4096, 16384];
/** Share of the ratio of operations that the ratio of times has to reach. */
const wanted = 0.5;

export const mla: Part = {
  name: "mla",
  async run({ limits }: Ground): Promise<PartResult> {
    const rows: Cell[][] = [];
    const ratios: Cell[][] = [];
    const targets: Target[] = [];
    for (const numHeads of headCounts) {
      for (const kvLen of contexts) {
        const dims = { ...deepseek, numHeads };
        const absorbed = new AbsorbedLayers(limits.device, dims, kvLen);
        const vanilla = new VanillaMla(limits.device, dims, kvLen);
        await vanilla.prepare();
        const { times, limits: reached } = await takeTurns(limits, [absorbed, vanilla]);
        const [fast, slow] = times;
        for (const [name, time, { cost }] of [
          ["absorbed", fast, absorbed],
          ["vanilla", slow, vanilla],
        ] as const) {
          rows.push([name, numHeads, kvLen, ...rateCells(time, cost, reached)]);
        }
        const ofTimes = slow.median / fast.median;
        const ofOperations = vanilla.cost.operations / absorbed.cost.operations;
        ratios.push([numHeads, kvLen, fast.median, slow.median, ofTimes, ofOperations, ofTimes / ofOperations]);
        targets.push({
          name: `absorbed MLA, ${numHeads} heads, ${kvLen} keys: gain in time of gain in operations`,
          measured: ofTimes / ofOperations,
          is: "at least",
          wanted,
        });
        absorbed.release();
        vanilla.release();
      }
    }
    return {
      tables: [
        {
          title: "Latent attention of one new token, latents of 512 and rope keys of 64 channels",
          columns: ["", "heads", "keys", ...rateColumns],
          rows,
        },
        {
          title: "Absorbed against vanilla",
          columns: ["heads", "keys", "absorbed, ms", "vanilla, ms", "ratio of times", "ratio of operations", "of it"],
          rows: ratios,
        },
      ],
      targets,
      remarks: [
        `Absorbed: ${storage} pages of ${pageSize} tokens; W_UK and W_UV (f32) are applied in each step. Vanilla: latents lie in one f32 array, whose gathering from pages is not counted; they go through the f32 matrix product of src/ops/matmul, ${headsAtOnce} heads at a time, then attention runs over the keys and values that came out. With more heads than that, a turn takes the next ${headsAtOnce}, and the time of all is the median of these times their number. Projections that both forms share are left out of times and operations.`,
      ],
    };
  },
};
