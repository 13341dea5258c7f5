/**
 * A whole model through the engine, line by line beside what was set as its target and what the machine allows. The limits are measured
 * between the rounds of what is held against them, so that a slow minute slows both.
 */

import { CpuDevice } from "../src/devices/index.ts";
import { Engine } from "../src/engine/index.ts";
import { builtEngine, type FreshProcess, freshProcesses, sourcesEngine } from "./freshProcesses.ts";
import { ComputePeak, ReadBandwidth } from "./limits.ts";
import { describeModel, type ModelWork } from "./modelFile.ts";
import { formatFigure } from "./render.ts";
import { decodeRate, type FirstTokens, firstTokens, prefillSeconds } from "./requests.ts";
import { allThreads, type Bench, type Cell, mapSpread, type Spread, spread } from "./result.ts";

const ROUNDS = 5;
/** The unshared prompts take long, and the ratio that they serve is far from its target. */
const PREFIX_ROUNDS = 3;
const CONTEXT = 256;
const ONE = { sequences: 1, context: CONTEXT, tokens: 48 };
const SIXTEEN = { sequences: 16, context: CONTEXT, tokens: 24 };
const PREFILL_TOKENS = 512;
const PREFIX = { requests: 8, sharedTokens: 2048, ownTokens: 16 };
const PAGE_SIZE = 16;

/** A line of the table: `ratio` must be at least or at most `wanted`. */
interface Line {
  readonly what: string;
  readonly measured: Spread;
  readonly unit: string;
  readonly runs: number;
  /** The limit or target in words, with its figure. */
  readonly against: string;
  readonly ratio: number;
  readonly wanted: { readonly atLeast: number } | { readonly atMost: number };
  /** What stands in the way, printed where the line falls short. */
  readonly because?: string;
}

interface Rounds {
  readonly read: number[];
  readonly f32Peak: number[];
  readonly one: number[];
  readonly sixteen: number[];
  readonly prefill: number[];
}

async function measureRounds(engine: Engine, work: ModelWork, threads: number): Promise<Rounds> {
  const device = await CpuDevice.create({ threads });
  const bandwidth = new ReadBandwidth(device);
  const peak = new ComputePeak(device);
  const rounds: Rounds = { read: [], f32Peak: [], one: [], sixteen: [], prefill: [] };
  await bandwidth.warm();
  await peak.warm("f32");
  // The first round is not counted: kernels and prompts are prepared in it.
  for (let round = -1; round < ROUNDS; round++) {
    const read = await bandwidth.measure(2);
    const one = await decodeRate(engine, work, ONE);
    read.push(...(await bandwidth.measure(2)));
    const sixteen = await decodeRate(engine, work, SIXTEEN);
    const f32Peak = await peak.measure("f32", 2);
    const prefill = await prefillSeconds(engine, work, PREFILL_TOKENS, `prefill ${round}`);
    f32Peak.push(...(await peak.measure("f32", 2)));
    if (round < 0) continue;
    rounds.read.push(...read);
    rounds.f32Peak.push(...f32Peak);
    rounds.one.push(one);
    rounds.sixteen.push(sixteen);
    rounds.prefill.push(prefill);
  }
  await device.close();
  return rounds;
}

interface PrefixRounds {
  readonly shared: FirstTokens[];
  readonly apart: FirstTokens[];
  readonly sharedTokens: number;
}

async function measurePrefix(engine: Engine, work: ModelWork): Promise<PrefixRounds> {
  const longest = work.contextLength - PREFIX.ownTokens - 1;
  const sharedTokens = Math.min(PREFIX.sharedTokens, Math.floor(longest / PAGE_SIZE) * PAGE_SIZE);
  const load = { ...PREFIX, sharedTokens };
  const rounds: PrefixRounds = { shared: [], apart: [], sharedTokens };
  for (let round = 0; round < PREFIX_ROUNDS; round++) {
    rounds.shared.push(await firstTokens(engine, work, load, true, `shared ${round}`));
    rounds.apart.push(await firstTokens(engine, work, load, false, `apart ${round}`));
  }
  return rounds;
}

function speedLines(work: ModelWork, threads: number, rounds: Rounds): Line[] {
  const [read, peak, one] = [spread(rounds.read), spread(rounds.f32Peak), spread(rounds.one)];
  const sixteen = spread(rounds.sixteen);
  const megabytes = work.bytesPerStep / 1e6;
  const allowed = (read.median * 1000) / megabytes;
  const operations = PREFILL_TOKENS * work.operationsPerToken + work.operationsPerLogits;
  const prefill = mapSpread(spread(rounds.prefill), (seconds) => operations / seconds / 1e9 / threads);
  const prefillTarget = 60;
  return [
    {
      what: `decode, 1 sequence behind ${CONTEXT} tokens`,
      measured: one,
      unit: "tokens/s",
      runs: ROUNDS,
      against: `${formatFigure(allowed)}: ${formatFigure(read.median)} GB/s (${formatFigure(read.min)} to ${formatFigure(read.max)}) for ${formatFigure(megabytes)} MB of weights`,
      ratio: one.median / allowed,
      wanted: { atLeast: 0.7 },
      because:
        "Unpacking the weights' blocks and what is done between the matrices come on top of the reading: `profile` shows a step's time by kernel.",
    },
    {
      what: `decode, 16 sequences behind ${CONTEXT} tokens`,
      measured: sixteen,
      unit: "tokens/s in all",
      runs: ROUNDS,
      against: `${formatFigure(one.median)} with 1 sequence`,
      ratio: sixteen.median / one.median,
      wanted: { atLeast: 2.5 },
      because:
        "The weights are read once for 16 tokens, but each token still costs its multiplications: these bound it, not the memory.",
    },
    {
      what: `prefill of ${PREFILL_TOKENS} tokens`,
      measured: prefill,
      unit: "GFLOP/s per core",
      runs: ROUNDS,
      against: `${prefillTarget}; this machine's f32 multiply-add peak is ${formatFigure(peak.median)} (${formatFigure(peak.min)} to ${formatFigure(peak.max)}) per core`,
      ratio: prefill.median / prefillTarget,
      wanted: { atLeast: 1 },
      because: `That is ${formatFigure(prefill.median / peak.median)} of the f32 multiply-add peak measured between the rounds; the whole time to the first token counts, of which the matrix products are a part.`,
    },
  ];
}

function prefixLine({ shared, apart, sharedTokens }: PrefixRounds): Line {
  const last = (rounds: readonly FirstTokens[]): Spread => spread(rounds.map(({ lastSeconds }) => lastSeconds));
  const mean = (rounds: readonly FirstTokens[]): number => spread(rounds.map(({ meanSeconds }) => meanSeconds)).median;
  return {
    what: `first tokens of ${PREFIX.requests} requests that share ${sharedTokens} tokens`,
    measured: last(shared),
    unit: `s until the last has its own (mean ${formatFigure(mean(shared))})`,
    runs: PREFIX_ROUNDS,
    against: `${formatFigure(last(apart).median)} s without sharing (mean ${formatFigure(mean(apart))})`,
    ratio: last(shared).median / last(apart).median,
    wanted: { atMost: 0.25 },
  };
}

/** `how` the program was started. */
function processLines(work: ModelWork, how: string, processes: readonly FreshProcess[]): Line[] {
  const beyond = spread(processes.map(({ peakBytes, cacheBytes }) => (peakBytes - work.fileBytes - cacheBytes) / 1e6));
  const peak = spread(processes.map(({ peakBytes }) => peakBytes / 1e6)).median;
  const load = spread(processes.map(({ loadSeconds }) => loadSeconds));
  const memoryTarget = 200;
  const loadTarget = 2;
  return [
    {
      what: `peak memory beyond file and cache, ${how}`,
      measured: beyond,
      unit: "MB",
      runs: ROUNDS,
      against: `${memoryTarget}; in all ${formatFigure(peak)} MB, the file ${formatFigure(work.fileBytes / 1e6)}, the filled cache ${formatFigure(processes[0].cacheBytes / 1e6)}`,
      ratio: beyond.median / memoryTarget,
      wanted: { atMost: 1 },
      because:
        "The whole process counts: Node and its threads (each of them strips types anew where it runs the sources), the tokenizer, the buffers of a step, the logits of 16 sequences.",
    },
    {
      what: `load, ${how}, file in the page cache`,
      measured: load,
      unit: "s",
      runs: ROUNDS,
      against: `${loadTarget}`,
      ratio: load.median / loadTarget,
      wanted: { atMost: 1 },
    },
  ];
}

const passes = ({ ratio, wanted }: Line): boolean =>
  "atLeast" in wanted ? ratio >= wanted.atLeast : ratio <= wanted.atMost;
const wantedText = ({ wanted }: Line): string =>
  "atLeast" in wanted ? `at least ${wanted.atLeast}` : `at most ${wanted.atMost}`;

const row = (line: Line): Cell[] => [
  line.what,
  line.measured,
  line.unit,
  line.against,
  line.ratio,
  wantedText(line),
  passes(line) ? "pass" : "falls short",
  line.runs,
];

function remarks(work: ModelWork, lines: readonly Line[]): string[] {
  const short = lines.filter((line) => !passes(line));
  const list = short.map(
    (line) =>
      `${line.what} falls short: the ratio is ${formatFigure(line.ratio)}, ${wantedText(line)} was wanted. ${line.because ?? ""}`,
  );
  if (work.bytesPerStep < 64e6) {
    list.push("These weights fit into the caches of many machines: reading memory is then no limit of decoding.");
  }
  return list;
}

export const model: Bench = {
  name: "model",
  summary: "a model through the engine, each line beside its target: npm run bench -- model [MODEL]",
  async run(options) {
    const threads = allThreads(options);
    const work = await describeModel(options.model);
    const built = builtEngine();
    const processes: Line[] = [];
    for (const [how, engine] of [
      ["as built", built],
      ["from the sources", sourcesEngine],
    ] as const) {
      if (engine === undefined) continue;
      processes.push(...processLines(work, how, await freshProcesses(engine, work.path, threads, ROUNDS)));
    }
    const maxNumTokens = PREFIX.requests * (PREFIX.sharedTokens + 2 * PREFIX.ownTokens) + 16 * 2 * CONTEXT;
    const engine = await Engine.load(work.path, { threads, maxNumTokens });
    const rounds = await measureRounds(engine, work, threads);
    const prefix = await measurePrefix(engine, work);
    const { device } = engine.describe();
    await engine.close();
    const lines = [...speedLines(work, threads, rounds), prefixLine(prefix), ...processes];
    return {
      name: "model",
      about: `${work.label} through the engine (${device}; 8-bit activations, cache pages in f16): median, least and most. What the machine allows is measured between the rounds. Ratios are of medians: measured over limit or target.`,
      tables: [
        {
          title: `Targets with ${work.label}`,
          columns: ["", "measured", "unit", "limit or target", "ratio", "wanted", "", "runs"],
          rows: lines.map(row),
        },
      ],
      remarks: [
        ...remarks(work, lines),
        ...(built === undefined ? ["dist/ is not there or older than the sources: `npm run build` first."] : []),
      ],
    };
  },
};
