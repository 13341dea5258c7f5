/**
 * Timing turn by turn: in every turn the limits of the machine are measured once, then each contender once, so that whatever else the
 * machine does meets all of them alike. What is run is the parts' business, how it is printed that of rates.ts.
 */

import type { CpuDevice } from "../../src/devices/index.ts";
import { ComputePeak, MatrixTile, ReadBandwidth } from "../limits.ts";
import { type Spread, spread } from "../result.ts";

/** Something to be timed again and again. */
export interface Contender {
  run(): Promise<unknown>;
  /** What one run does several times over, such as layers: its time is divided by this. 1 by default. */
  readonly repeats?: number;
}

/** What the machine allowed in the same turns, all threads together. */
export interface TurnLimits {
  /** GB/s. */
  readonly read: Spread;
  /** GFLOP/s of the f32 matrix product. */
  readonly tile: Spread;
  /** GFLOP/s of multiply-adds in registers. */
  readonly peak: Spread;
}

export interface Turns {
  /** Milliseconds of each contender. */
  readonly times: readonly Spread[];
  readonly limits: TurnLimits;
}

const LEAST_TURNS = 5;
const MOST_TURNS = 15;
const WARM_RUNS = 1;
const WARM_MS = 120;
const TURNS_MS = 200;
/** A round of multiply-adds takes a fraction of a millisecond. */
const PEAK_ROUNDS = 9;

/** Measures the limits of one device whenever it is asked to. */
export class RunningLimits {
  readonly device: CpuDevice;
  readonly #read: ReadBandwidth;
  readonly #tile: MatrixTile;
  readonly #peak: ComputePeak;

  private constructor(device: CpuDevice, read: ReadBandwidth, tile: MatrixTile, peak: ComputePeak) {
    this.device = device;
    this.#read = read;
    this.#tile = tile;
    this.#peak = peak;
  }

  static async create(device: CpuDevice): Promise<RunningLimits> {
    const [read, tile, peak] = [new ReadBandwidth(device), await MatrixTile.create(device), new ComputePeak(device)];
    await read.warm();
    await tile.warm();
    await peak.warm("f32");
    return new RunningLimits(device, read, tile, peak);
  }

  /** One figure of each, as in TurnLimits. */
  async measure(): Promise<Readonly<Record<keyof TurnLimits, number>>> {
    const [read] = await this.#read.measure(1);
    const [tile] = await this.#tile.measure(1);
    const { median: peak } = spread(await this.#peak.measure("f32", PEAK_ROUNDS));
    return { read, tile, peak: peak * this.device.threads };
  }

  free(): void {
    for (const limit of [this.#read, this.#tile, this.#peak]) limit.free();
  }
}

/** Takes at least 5 turns, and more of what is quick. */
export async function takeTurns(limits: RunningLimits, contenders: readonly Contender[]): Promise<Turns> {
  for (const contender of contenders) await warm(contender);
  const times = contenders.map((): number[] => []);
  const measured: Record<keyof TurnLimits, number[]> = { read: [], tile: [], peak: [] };
  const start = performance.now();
  for (let turn = 0; turn < MOST_TURNS; turn++) {
    if (turn >= LEAST_TURNS && performance.now() - start > TURNS_MS * contenders.length) break;
    const { read, tile, peak } = await limits.measure();
    measured.read.push(read);
    measured.tile.push(tile);
    measured.peak.push(peak);
    for (const [i, contender] of contenders.entries()) times[i].push(await timeOf(contender));
  }
  return {
    times: times.map(spread),
    limits: { read: spread(measured.read), tile: spread(measured.tile), peak: spread(measured.peak) },
  };
}

/** Milliseconds of one run, divided by its repeats. */
async function timeOf(contender: Contender): Promise<number> {
  const start = performance.now();
  await contender.run();
  return (performance.now() - start) / (contender.repeats ?? 1);
}

/** Until the engine's optimised code is in place: it replaces its quick first code between two calls. */
async function warm(contender: Contender): Promise<void> {
  const start = performance.now();
  for (let runs = 0; runs < WARM_RUNS || performance.now() - start < WARM_MS; runs++) await contender.run();
}
