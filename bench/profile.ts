/**
 * Where a step's time goes: every launch of a prefill and of decode steps is run as a list of its own, with the clock around it, and the
 * times are added up by kernel. What launches gain by overlapping, and what they lose by following each other, is the difference to the
 * step run whole, which is printed beside.
 */

import { CpuDevice, type DeviceKernel } from "../src/devices/index.ts";
import { openModel } from "../src/models/config/index.ts";
import { locate } from "../src/models/formats/file.node.ts";
import { CpuRunner } from "../src/models/network/cpuRunner.ts";
import { loadWeights } from "../src/models/network/weights.ts";
import type { RaggedBatch } from "../src/models/runner.ts";
import { describeModel, type ModelWork, randomTokens } from "./modelFile.ts";
import { formatFigure } from "./render.ts";
import { allThreads, type Bench, type Cell, spread, type Table } from "./result.ts";

const PAGE_SIZE = 16;
const CONTEXT = 256;
const PREFILL_TOKENS = 512;
const NUM_TOKENS = 8192;
const SEQUENCES = 16;
/** Steps before the engine's optimised code of every kernel is in place, and steps that count. */
const WARM_STEPS = 4;
const SETTLE_MS = 500;

/** One launch as it was recorded. */
interface Launch {
  /** The kernel's name and, of a matrix product, what tells it from the others. */
  readonly label: string;
  run(): Promise<void>;
}

interface KernelTime {
  readonly label: string;
  numLaunches: number;
  milliseconds: number;
}

/** A device that remembers what is launched on it; `replay` then runs the last step's launches one by one. */
async function recordingDevice(threads: number): Promise<{ device: CpuDevice; replay(): Promise<KernelTime[]> }> {
  const device = await CpuDevice.create({ threads });
  const specs = new Map<DeviceKernel, unknown>();
  const compile = device.compile.bind(device);
  device.compile = (definition, spec) => {
    const kernel = compile(definition, spec);
    specs.set(kernel, spec);
    return kernel;
  };
  const launches: Launch[] = [];
  const makeList = device.commands.bind(device);
  const alone = makeList();
  device.commands = () => {
    const list = makeList();
    const [launch, reset] = [list.launch.bind(list), list.reset.bind(list)];
    list.launch = (kernel, args, numTasks, options) => {
      launch(kernel, args, numTasks, options);
      if (numTasks === 0) return;
      // The caller may reuse its arguments.
      const copy = { ...args };
      launches.push({
        label: labelOf(kernel.name, specs.get(kernel), copy),
        run() {
          alone.reset();
          alone.launch(kernel, copy, numTasks, options);
          return device.run(alone);
        },
      });
    };
    list.reset = () => {
      launches.length = 0;
      reset();
    };
    return list;
  };
  const replay = async (): Promise<KernelTime[]> => {
    const times = new Map<string, KernelTime>();
    for (const { label, run } of launches) {
      const start = performance.now();
      await run();
      const milliseconds = performance.now() - start;
      const time = times.get(label) ?? { label, numLaunches: 0, milliseconds: 0 };
      time.numLaunches++;
      time.milliseconds += milliseconds;
      times.set(label, time);
    }
    return [...times.values()];
  };
  return { device, replay };
}

/** Matrix products by type, arithmetic and shape; all else by name. */
function labelOf(name: string, spec: unknown, args: Readonly<Record<string, number>>): string {
  if (typeof spec !== "object" || spec === null || !("arithmetic" in spec && "type" in spec && "columns" in spec)) {
    return name;
  }
  return `${name} ${spec.type} ${spec.arithmetic}, ${spec.columns} to ${args.rows}`;
}

/** `sequences` of `newTokens` each, behind `context` tokens whose keys and values are whatever the pages hold. */
function stepOf(work: ModelWork, sequences: number, newTokens: number, context: number): RaggedBatch {
  const numTokens = sequences * newTokens;
  const maxPages = Math.ceil((context + newTokens) / PAGE_SIZE);
  const each = <T>(map: (sequence: number, offset: number) => T): T[] =>
    Array.from({ length: numTokens }, (_, i) => map(Math.floor(i / newTokens), i % newTokens));
  return {
    numTokens,
    numSeqs: sequences,
    tokenIds: Int32Array.from(randomTokens(work, numTokens, 1)),
    positions: Int32Array.from(each((_, offset) => context + offset)),
    slotMapping: Int32Array.from(each((sequence, offset) => sequence * maxPages * PAGE_SIZE + context + offset)),
    queryIndptr: Int32Array.from({ length: sequences + 1 }, (_, s) => s * newTokens),
    kvLens: new Int32Array(sequences).fill(context + newTokens),
    blockTables: Int32Array.from({ length: sequences * maxPages }, (_, i) => i),
    maxPages,
    logitsRows: Int32Array.from({ length: sequences }, (_, s) => (s + 1) * newTokens - 1),
  };
}

const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function profileStep(
  title: string,
  runner: CpuRunner,
  replay: () => Promise<KernelTime[]>,
  batch: RaggedBatch,
  steps: number,
): Promise<Table> {
  for (let step = 0; step < WARM_STEPS; step++) await runner.execute(batch);
  // Code is optimised in the background.
  await pause(SETTLE_MS);
  await runner.execute(batch);
  const whole: number[] = [];
  const runs: KernelTime[][] = [];
  for (let step = 0; step < steps; step++) {
    const start = performance.now();
    await runner.execute(batch);
    whole.push(performance.now() - start);
    runs.push(await replay());
  }
  const kernels = runs[0].map(({ label, numLaunches }, index) => ({
    label,
    numLaunches,
    milliseconds: spread(runs.map((times) => times[index].milliseconds)).median,
  }));
  const sum = kernels.reduce((total, { milliseconds }) => total + milliseconds, 0);
  const rows = kernels
    .sort((a, b) => b.milliseconds - a.milliseconds)
    .map(({ label, numLaunches, milliseconds }): Cell[] => [
      label,
      numLaunches,
      milliseconds,
      (100 * milliseconds) / sum,
      (1000 * milliseconds) / numLaunches,
    ]);
  const launches = kernels.reduce((total, { numLaunches }) => total + numLaunches, 0);
  const step = spread(whole);
  rows.push(["launches one by one", launches, sum, 100, (1000 * sum) / launches]);
  rows.push(["the step whole", launches, step.median, (100 * step.median) / sum, (1000 * step.median) / launches]);
  return {
    title: `${title}: ${formatFigure((1000 * batch.numTokens) / step.median)} tokens/s`,
    columns: ["kernel", "launches", "ms a step", "%", "µs a launch"],
    rows,
  };
}

export const profile: Bench = {
  name: "profile",
  summary: "a step's time by kernel: npm run bench -- profile [MODEL]",
  async run(options) {
    const threads = allThreads(options);
    const work = await describeModel(options.model);
    const { device, replay } = await recordingDevice(threads);
    const { folder, fileName } = await locate(work.path);
    const { config, tensors, weights: file } = await openModel(folder, fileName);
    const weights = await loadWeights(device, config, tensors, { precision: "int8" });
    await file.close();
    const runner = new CpuRunner(device, config, weights, {
      numPages: NUM_TOKENS / PAGE_SIZE,
      pageSize: PAGE_SIZE,
      storage: "f16",
      maxNumBatchedTokens: PREFILL_TOKENS,
    });
    const tables = [
      await profileStep(`Prefill of ${PREFILL_TOKENS}`, runner, replay, stepOf(work, 1, PREFILL_TOKENS, 0), 3),
      await profileStep(`Decode, 1 sequence behind ${CONTEXT}`, runner, replay, stepOf(work, 1, 1, CONTEXT), 21),
      await profileStep(
        `Decode, ${SEQUENCES} sequences behind ${CONTEXT}`,
        runner,
        replay,
        stepOf(work, SEQUENCES, 1, CONTEXT),
        7,
      ),
    ];
    await runner.close();
    return {
      name: "profile",
      about: `Steps of ${work.label} on ${threads} threads, without the engine above them. Each launch is timed as a list of its own (medians over the steps); the last row is the same step as one list, in which launches may overlap.`,
      tables,
      remarks: [],
    };
  },
};
