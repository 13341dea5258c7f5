/**
 * The inner step of the integer matrix products: one sub-block of 32 weights of some panels times the same 32 activations of some
 * tokens, added to f32 sums. Integer sums are exact, so only the order of sub-blocks and groups decides the bits: both kernels
 * (weights read from their blocks, or expanded before) take this step and agree bit for bit.
 */

import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { activationBlock, meta } from "./activations.ts";
import type { QuantizedFormat } from "./formats.ts";
import type { TileSums } from "./kernelParts.ts";

/** Where the step reads weights: `panel` counts the panels of the tile. */
export interface WeightSource {
  bytes(panel: number, unit: number): Value<"i8v">;
  /** The same bytes widened, lower and upper half of the rows; only asked for in 16-bit arithmetic. */
  halves(panel: number, unit: number): readonly [Value<"i16v">, Value<"i16v">];
  scale(panel: number, group: number): Value<"f32v">;
  minimum(panel: number, group: number): Value<"f32v">;
}

/** The activations of one token: addresses of the sub-block's integers and of its four f32. */
export interface TokenBlock {
  readonly integers: Value<"i32">;
  readonly meta: Value<"i32">;
}

/** Adds the sub-block's products to sums[panel][token]. */
export function accumulateSubBlock(
  k: KernelBuilder,
  format: QuantizedFormat,
  arithmetic: "i8" | "i16",
  source: WeightSource,
  tokens: readonly TokenBlock[],
  sums: TileSums,
): void {
  const groups = activationBlock / format.groupSize;
  for (let group = 0; group < groups; group++) {
    const units = format.unitOrder.filter((unit) => Math.floor((unit * 4) / format.groupSize) === group);
    const products =
      arithmetic === "i8"
        ? products8(k, format, source, tokens, units, sums.length)
        : products16(k, source, tokens, units, sums.length);
    const sumOffset = groups === 1 ? meta.negativeSumAll : meta.negativeSum[group];
    const usesSum = format.zero !== 0 || format.hasMinimum;
    const scales = sums.map((_, panel) => k.let(source.scale(panel, group)));
    const minima = sums.map((_, panel) => (format.hasMinimum ? k.let(source.minimum(panel, group)) : undefined));
    tokens.forEach((token, t) => {
      const scale = k.let(k.loadSplatF32(token.meta, meta.scale));
      const negativeSum = usesSum ? k.let(k.loadSplatF32(token.meta, sumOffset)) : undefined;
      sums.forEach((row, panel) => {
        const sum = row[t];
        let value = products[panel][t].toF32().mul(scale);
        if (format.zero !== 0 && negativeSum !== undefined) value = negativeSum.fma(k.all("f32v", format.zero), value);
        sum.set(value.fma(scales[panel], sum.value));
        const minimum = minima[panel];
        if (minimum !== undefined && negativeSum !== undefined) sum.set(minimum.fma(negativeSum, sum.value));
      });
    });
  }
}

/** Bytes times bytes. Pair sums stay in 16 bits for as many units as cannot overflow, then go to 32. */
function products8(
  k: KernelBuilder,
  format: QuantizedFormat,
  source: WeightSource,
  tokens: readonly TokenBlock[],
  units: readonly number[],
  numPanels: number,
): Value<"i32v">[][] {
  if (format.largestByte === undefined)
    throw new Error(`${format.type} has signed 8-bit weights: use 16-bit arithmetic`);
  const unitsPerSum = Math.floor(32767 / (2 * 127 * format.largestByte));
  const ones = k.all("i16v", 1);
  const totals: (Value<"i32v"> | undefined)[][] = Array.from({ length: numPanels }, () => tokens.map(() => undefined));
  for (let from = 0; from < units.length; from += unitsPerSum) {
    const short: (Value<"i16v"> | undefined)[][] = Array.from({ length: numPanels }, () => tokens.map(() => undefined));
    for (const unit of units.slice(from, from + unitsPerSum)) {
      const weights = short.map((_, panel) => k.let(source.bytes(panel, unit)));
      tokens.forEach((token, t) => {
        const activation = k.let(k.load("splat32", token.integers, unit * 4));
        weights.forEach((weight, panel) => {
          const product = activation.dotPairsU7(weight);
          const before = short[panel][t];
          short[panel][t] = k.let(before === undefined ? product : before.add(product));
        });
      });
    }
    short.forEach((row, panel) => {
      row.forEach((sum, t) => {
        if (sum === undefined) return;
        const widened = sum.dotPairs(ones);
        const before = totals[panel][t];
        totals[panel][t] = k.let(before === undefined ? widened : before.add(widened));
      });
    });
  }
  return totals.map((row) => row.map((total) => total ?? k.all("i32v", 0)));
}

/** 16 bits times 16 bits, summed in 32: at most 32 * 128 * 32767 < 2^31. */
function products16(
  k: KernelBuilder,
  source: WeightSource,
  tokens: readonly TokenBlock[],
  units: readonly number[],
  numPanels: number,
): Value<"i32v">[][] {
  const sums: (readonly [Value<"i32v">, Value<"i32v">] | undefined)[][] = Array.from({ length: numPanels }, () =>
    tokens.map(() => undefined),
  );
  for (const unit of units) {
    const weights = sums.map((_, panel) => source.halves(panel, unit).map((half) => k.let(half)));
    tokens.forEach((token, t) => {
      const activation = k.let(k.load("splat64", token.integers, unit * 8));
      weights.forEach(([low, high], panel) => {
        const before = sums[panel][t];
        const [lowSum, highSum] = [low.dotPairs(activation), high.dotPairs(activation)];
        sums[panel][t] =
          before === undefined
            ? [k.let(lowSum), k.let(highSum)]
            : [k.let(before[0].add(lowSum)), k.let(before[1].add(highSum))];
      });
    });
  }
  return sums.map((row) => row.map((sum) => (sum === undefined ? k.all("i32v", 0) : k.let(sum[0].pairAdd(sum[1])))));
}
