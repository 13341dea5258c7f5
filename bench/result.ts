/** What a benchmark gives: tables of raw figures and remarks on them. How they are printed is render.ts's. */

/** Median, least and most of several runs. */
export interface Spread {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** A word, a figure in the unit its column names, the spread of a figure, or nothing. */
export type Cell = string | number | Spread | null;

export interface Table {
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly Cell[])[];
}

export interface BenchResult {
  readonly name: string;
  /** What was measured and how, in a sentence or two. */
  readonly about: string;
  readonly tables: readonly Table[];
  /** What the figures say: where a target is missed, and what stands against it. */
  readonly remarks: readonly string[];
}

export interface BenchOptions {
  /** Numbers of threads to measure with, in order; the last is taken where only one is measured. */
  readonly threads: readonly number[];
  /** Path of a model. Default: Gemma 3 270M where it was fetched, else the bundled model. */
  readonly model?: string;
  /** Parts of a benchmark that has some; all of them by default. */
  readonly parts?: readonly string[];
}

export interface Bench {
  readonly name: string;
  /** One line for the list of names. */
  readonly summary: string;
  /** Names of what can be run alone, for a benchmark of several parts. */
  readonly parts?: readonly string[];
  run(options: BenchOptions): Promise<BenchResult>;
}

/** Median (of an even number: the upper of the middle two), least and most. */
export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  return { median: sorted[sorted.length >> 1], min: sorted[0], max: sorted[sorted.length - 1] };
}

/** The spread of `change` of each value; a change that falls turns least and most around. */
export function mapSpread({ median, min, max }: Spread, change: (value: number) => number): Spread {
  const [low, high] = [change(min), change(max)].sort((a, b) => a - b);
  return { median: change(median), min: low, max: high };
}

/** The largest number of threads that is measured. */
export const allThreads = ({ threads }: BenchOptions): number => threads[threads.length - 1];
