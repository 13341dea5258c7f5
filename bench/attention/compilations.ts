/** Steps of ever other lengths, and the device's count of compiled kernels: only a new spec may raise it. */

import type { Cell } from "../result.ts";
import { AttentionLayers, llama3 } from "./layers.ts";
import { repeat } from "./pages.ts";
import { mixedLengths } from "./ragged.ts";
import type { Ground, Part, PartResult } from "./rates.ts";

const steps = [
  { name: "1 sequence, 1 new token, 16 keys", lengths: repeat(1, 1, 16) },
  { name: "1 sequence, 1 new token, 5000 keys", lengths: repeat(1, 1, 5000) },
  { name: "64 sequences, 1 new token, 300 keys", lengths: repeat(64, 1, 300) },
  { name: "1 sequence, 700 new tokens", lengths: repeat(1, 700, 700) },
  { name: `mixed batch of ${mixedLengths.length} sequences`, lengths: mixedLengths },
];

export const compilations: Part = {
  name: "compilations",
  async run({ limits }: Ground): Promise<PartResult> {
    const { device } = limits;
    // Its own split size keeps the spec from being one that another part has compiled.
    const spec = { ...llama3, storage: "f16", splitSize: 512 } as const;
    const rows: Cell[][] = [];
    let after = 0;
    for (const [index, { name, lengths }] of steps.entries()) {
      const before = device.stats().numKernels;
      const layers = new AttentionLayers(device, spec, lengths, { repeats: 1 });
      await layers.run();
      layers.release();
      const compiled = device.stats().numKernels - before;
      rows.push([name, compiled]);
      if (index > 0) after += compiled;
    }
    return {
      tables: [{ title: "Kernels compiled by steps of one spec, in this order", columns: ["step", "kernels"], rows }],
      targets: [{ name: "kernels compiled when only lengths change", measured: after, is: "at most", wanted: 0 }],
    };
  },
};
