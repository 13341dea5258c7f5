/**
 * Speed of attention on the CPU device beside what the machine allows: reading memory, the f32 matrix product, multiply-adds in registers,
 * all measured turn by turn with it. Its parts are in bench/attention; `npm run bench -- attention decode mla` runs two of them.
 */

import { CpuDevice } from "../src/devices/index.ts";
import { compilations } from "./attention/compilations.ts";
import { decode } from "./attention/decode.ts";
import { mla } from "./attention/mla.ts";
import { palu } from "./attention/palu.ts";
import { planning } from "./attention/planning.ts";
import { prefill } from "./attention/prefill.ts";
import { ragged } from "./attention/ragged.ts";
import { type Part, type PartResult, targetTable } from "./attention/rates.ts";
import { storage } from "./attention/storage.ts";
import { RunningLimits } from "./attention/turns.ts";
import { allThreads, type Bench } from "./result.ts";

const parts: readonly Part[] = [decode, prefill, ragged, planning, mla, palu, storage, compilations];

export const attention: Bench = {
  name: "attention",
  summary: "attention in parts",
  parts: parts.map(({ name }) => name),
  async run(options) {
    const threads = allThreads(options);
    const device = await CpuDevice.create({ threads });
    const results: PartResult[] = [];
    try {
      const limits = await RunningLimits.create(device);
      for (const part of parts) {
        if (options.parts && !options.parts.includes(part.name)) continue;
        const start = performance.now();
        results.push(await part.run({ limits }));
        console.error(`attention ${part.name}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
      }
      limits.free();
    } finally {
      await device.close();
    }
    const { highWaterBytes } = device.stats();
    const targets = results.flatMap((result) => result.targets ?? []);
    return {
      name: "attention",
      about: `Attention of one layer on ${threads} threads, in medians of 5 turns or more. A run goes through as many layers, each with pages of its own, as together read more than the caches hold; pages lie scattered over the pool. Operations are those of the products, two for each multiply-add, and bytes what no kernel can avoid. The limits, of all threads together, are measured in the same turns: reading 256 MiB, the f32 matrix product of 256 tokens with 1024 x 1024 weights, and multiply-adds in registers. The device's memory held ${(highWaterBytes / 2 ** 30).toFixed(1)} GiB at most.`,
      tables: [...(targets.length > 0 ? [targetTable(targets)] : []), ...results.flatMap(({ tables }) => tables)],
      remarks: results.flatMap(({ remarks = [] }) => remarks),
    };
  },
};
