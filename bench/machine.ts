/** The limits of this machine as a benchmark of its own. */

import { CpuDevice } from "../src/devices/index.ts";
import { type Limits, measureLimits, type Peak } from "./limits.ts";
import type { Bench, Table } from "./result.ts";

const peakNames: Readonly<Record<Peak, string>> = {
  f32: "f32 multiply-add, GFLOP/s per core",
  dot16: "16-bit dot products, summed in 32 bits, GOP/s per core",
  dot8: "8-bit dot products, summed in 16 bits, GOP/s per core",
  "dot8 widened": "8-bit dot products, widened to 32 bits after 4, GOP/s per core",
};

export const machine: Bench = {
  name: "machine",
  summary: "what the machine allows: reading memory, multiply-adds, dot products",
  async run({ threads }) {
    const limits: Limits[] = [];
    let features = "";
    for (const count of threads) {
      const device = await CpuDevice.create({ threads: count });
      features = device.features.relaxedSimd ? "relaxed SIMD" : "SIMD without the relaxed instructions";
      limits.push(await measureLimits(device));
      await device.close();
    }
    const peakRows = (Object.keys(peakNames) as Peak[]).map((peak) => [
      peakNames[peak],
      ...limits.map((limit) => limit.peaks[peak]),
    ]);
    const table: Table = {
      title: "Limits",
      columns: ["", ...threads.map((count) => (count === 1 ? "1 thread" : `${count} threads`))],
      rows: [["memory read, GB/s in all", ...limits.map(({ read }) => read)], ...peakRows],
    };
    return {
      name: "machine",
      about: `Limits through kernels of our own language, with ${features}: passes over 256 MiB, and loops whose operands change with every step (median, least and most of 9). A multiply-add counts as two operations.`,
      tables: [table],
      remarks: [],
    };
  },
};
