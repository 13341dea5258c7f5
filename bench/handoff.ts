/**
 * What a launch costs by itself: microseconds per empty launch inside a list of 300, by number of threads, with as many chunks as
 * threads (each launch is a hand-off between all of them) and with one chunk (no hand-off). Beside it, what recording costs.
 *
 *     node bench/handoff.ts [threads...]
 */

import { pathToFileURL } from "node:url";
import { CpuDevice } from "../src/devices/index.ts";
import { defineKernel } from "../src/kernels/index.ts";

const NUM_LAUNCHES = 300;
const NUM_RUNS = 300;
const NUM_ROUNDS = 9;

const nothing = defineKernel({
  name: "nothing",
  params: { out: "pointer", count: "i32", scale: "f32" },
  build(k, _spec: null) {
    k.forTasks(() => {});
  },
});

export interface HandoffRow {
  readonly threads: number;
  readonly chunks: number;
  /** Median and least of several rounds, in microseconds per launch. */
  readonly runMicroseconds: { readonly median: number; readonly min: number };
  readonly recordMicroseconds: { readonly median: number; readonly min: number };
}

export async function benchHandoff(threads: number, chunks: number): Promise<HandoffRow> {
  const device = await CpuDevice.create({ threads });
  const kernel = device.compile(nothing, null);
  const commands = device.commands();
  const record = () => {
    commands.reset();
    for (let i = 0; i < NUM_LAUNCHES; i++) {
      commands.launch(kernel, { out: 4096, count: i, scale: 0.5 }, chunks, { grain: 1 });
    }
  };
  const run: number[] = [];
  const recording: number[] = [];
  for (let round = -1; round < NUM_ROUNDS; round++) {
    const start = performance.now();
    for (let i = 0; i < NUM_RUNS; i++) record();
    const recorded = performance.now();
    for (let i = 0; i < NUM_RUNS; i++) await device.run(commands);
    const end = performance.now();
    if (round < 0) continue; // the engine is still compiling
    recording.push(recorded - start);
    run.push(end - recorded);
  }
  await device.close();
  return { threads, chunks, runMicroseconds: perLaunch(run), recordMicroseconds: perLaunch(recording) };
}

function perLaunch(milliseconds: number[]): { median: number; min: number } {
  const sorted = milliseconds.map((ms) => (ms * 1000) / (NUM_LAUNCHES * NUM_RUNS)).sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1], min: sorted[0] };
}

async function main(args: string[]): Promise<void> {
  const threadCounts = args.length > 0 ? args.map(Number) : [1, 2];
  console.log("threads  chunks  run us/launch (median, min)  record us/launch (median, min)");
  for (const threads of threadCounts) {
    for (const chunks of new Set([1, threads])) {
      const row = await benchHandoff(threads, chunks);
      const figures = [row.runMicroseconds, row.recordMicroseconds].map(
        ({ median, min }) => `${median.toFixed(3)}, ${min.toFixed(3)}`,
      );
      console.log(`${threads}`.padStart(7), `${chunks}`.padStart(7), figures[0].padStart(28), figures[1].padStart(31));
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv.slice(2));
