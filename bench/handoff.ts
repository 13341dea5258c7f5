/**
 * What a launch costs by itself: microseconds per empty launch inside a list of 300, by number of threads, with as many chunks as
 * threads (each launch is a hand-off between all of them) and with one chunk (no hand-off). Beside it, what recording costs.
 */

import { CpuDevice } from "../src/devices/index.ts";
import { defineKernel } from "../src/kernels/index.ts";
import { type Bench, type Cell, type Spread, spread } from "./result.ts";

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

interface HandoffRow {
  readonly threads: number;
  readonly chunks: number;
  /** Microseconds per launch. */
  readonly run: Spread;
  readonly record: Spread;
}

async function measure(threads: number, chunks: number): Promise<HandoffRow> {
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
  return { threads, chunks, run: perLaunch(run), record: perLaunch(recording) };
}

const perLaunch = (milliseconds: readonly number[]): Spread =>
  spread(milliseconds.map((ms) => (ms * 1000) / (NUM_LAUNCHES * NUM_RUNS)));

export const handoff: Bench = {
  name: "handoff",
  summary: "what a launch costs by itself",
  async run({ threads }) {
    const rows: Cell[][] = [];
    for (const count of threads) {
      for (const chunks of new Set([1, count])) {
        const { run, record } = await measure(count, chunks);
        rows.push([count, chunks, run, record]);
      }
    }
    return {
      name: "handoff",
      about: `Empty launches in lists of ${NUM_LAUNCHES}, microseconds for each launch (median, least and most of ${NUM_ROUNDS} rounds). With as many chunks as threads each launch is a hand-off between all of them; with one chunk it is none.`,
      tables: [{ title: "Launches", columns: ["threads", "chunks", "run, µs", "record, µs"], rows }],
      remarks: [],
    };
  },
};
