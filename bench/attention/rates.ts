/** What a time means: operations and bytes a second beside the limits of the same turns, and the targets that the parts are held to. */

import type { Cost } from "../../src/ops/attention/index.ts";
import type { Cell, Spread, Table } from "../result.ts";
import type { RunningLimits, TurnLimits } from "./turns.ts";

/** Where a part of the benchmark runs. */
export interface Ground {
  readonly limits: RunningLimits;
}

/** A figure that was promised. */
export interface Target {
  readonly name: string;
  readonly measured: number;
  readonly wanted: number;
  readonly is: "at least" | "at most";
}

export interface PartResult {
  readonly tables: readonly Table[];
  readonly targets?: readonly Target[];
  readonly remarks?: readonly string[];
}

/** A part of the benchmark that can be run alone. */
export interface Part {
  readonly name: string;
  run(ground: Ground): Promise<PartResult>;
}

/** Columns of `rateCells`. */
export const rateColumns = [
  "ms",
  "GB/s",
  "reading memory",
  "of it",
  "GFLOP/s",
  "f32 matrix tile",
  "of it",
  "multiply-adds",
  "of them",
];

/** At the medians. */
export interface Rates {
  readonly gigabytes: number;
  readonly gigaflops: number;
  readonly ofReading: number;
  readonly ofTile: number;
  readonly ofPeak: number;
}

export function ratesOf({ median }: Spread, { operations, bytes }: Cost, limits: TurnLimits): Rates {
  const gigabytes = bytes / median / 1e6;
  const gigaflops = operations / median / 1e6;
  return {
    gigabytes,
    gigaflops,
    ofReading: gigabytes / limits.read.median,
    ofTile: gigaflops / limits.tile.median,
    ofPeak: gigaflops / limits.peak.median,
  };
}

export function rateCells(milliseconds: Spread, cost: Cost, limits: TurnLimits): Cell[] {
  const { gigabytes, gigaflops, ofReading, ofTile, ofPeak } = ratesOf(milliseconds, cost, limits);
  return [
    milliseconds,
    gigabytes,
    limits.read.median,
    ofReading,
    gigaflops,
    limits.tile.median,
    ofTile,
    limits.peak.median,
    ofPeak,
  ];
}

export function targetTable(targets: readonly Target[]): Table {
  return {
    title: "Targets",
    columns: ["", "measured", "wanted", "figure", ""],
    rows: targets.map(({ name, measured, wanted, is }) => {
      const passes = is === "at least" ? measured >= wanted : measured <= wanted;
      return [name, measured, is, wanted, passes ? "pass" : "falls short"];
    }),
  };
}
