/**
 * Activations as the integer kernels want them: blocks of 32 along the row, each with its own scale, quantised symmetrically to
 * 8 bits (-127..127) or 16 bits (-32767..32767). With 16 bits the rounding error is 256 times smaller and close to that of f32.
 *
 * A row: all integers, then for each block four f32: scale s, and -s * (sum of the integers) over the first 16, the last 16 and all
 * 32 of them, with which zero points and minima of the weights are subtracted.
 */

import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";

/** How products are summed: f32 multiply-adds; 8-bit weights of at most 6 bits times 8-bit activations; 16 bit times 16 bit. */
export type Arithmetic = "f32" | "i8" | "i16";

/** Activations of a block, which share a scale. Sub-blocks of weights have the same length. */
export const activationBlock = 32;
const metaBytes = 16;

/** Offsets of the four f32 of a block. */
export const meta = { scale: 0, negativeSum: [4, 8] as const, negativeSumAll: 12 } as const;

const integerBytes = (arithmetic: Exclude<Arithmetic, "f32">): number => (arithmetic === "i8" ? 1 : 2);

/** Bytes from one row of quantised activations to the next. */
export function activationRowBytes(arithmetic: Exclude<Arithmetic, "f32">, columns: number): number {
  return columns * integerBytes(arithmetic) + metaOfRow(columns);
}
const metaOfRow = (columns: number): number => (columns / activationBlock) * metaBytes;

/** Where the scales of a row begin. */
export const metaStart = (arithmetic: Exclude<Arithmetic, "f32">, columns: number): number =>
  columns * integerBytes(arithmetic);

/** Which form rows of `columns` activations (a multiple of `activationBlock`) get. */
export interface QuantizeSpec {
  readonly arithmetic: "i8" | "i16";
  readonly columns: number;
}

/** x: [rows, columns] f32 -> rows of `activationRowBytes`. One task is one row. */
export const quantizeActivations = defineKernel({
  name: "quantizeActivations",
  params: { x: "pointer", out: "pointer" },
  build(k, spec: QuantizeSpec, p) {
    const { arithmetic, columns } = spec;
    k.forTasks((row) => {
      const source = k.let(p.x.add(row.mul(columns * 4)));
      const integers = k.let(p.out.add(row.mul(activationRowBytes(arithmetic, columns))));
      const metas = k.let(integers.add(metaStart(arithmetic, columns)));
      k.for(0, columns / activationBlock, 1, (block) => {
        quantizeBlock(
          k,
          arithmetic,
          k.let(source.add(block.mul(activationBlock * 4))),
          k.let(integers.add(block.mul(activationBlock * integerBytes(arithmetic)))),
          k.let(metas.add(block.mul(metaBytes))),
        );
      });
    });
  },
});

function quantizeBlock(
  k: KernelBuilder,
  arithmetic: "i8" | "i16",
  source: Value<"i32">,
  integers: Value<"i32">,
  metas: Value<"i32">,
): void {
  const largest = arithmetic === "i8" ? 127 : 32767;
  const vectors = activationBlock / k.lanes;
  const x = Array.from({ length: vectors }, (_, i) => k.let(k.load("f32v", source, i * k.lanes * 4)));
  const magnitude = x.map((v) => v.abs()).reduce((a, b) => k.let(a.max(b)));
  const absMax = k.let(k.maxLanes(magnitude));
  // Below 2^-100 a block counts as zero: largest / absMax must stay finite.
  const inverse = k.splat(k.let(k.select(absMax.gt(2 ** -100), k.f32(largest).div(absMax), 0)));
  const rounded = x.map((v) => k.let(v.mul(inverse).nearest()));
  const integerVectors = rounded.map((v) => v.truncate());
  const narrowed: Value<"i16v">[] = [];
  for (let i = 0; i < vectors; i += 2) narrowed.push(k.let(integerVectors[i].narrow(integerVectors[i + 1])));
  if (arithmetic === "i16") {
    narrowed.forEach((v, i) => {
      k.store("i16v", integers, v, i * k.lanes * 4);
    });
  } else {
    for (let i = 0; i < narrowed.length; i += 2) {
      k.store("i8v", integers, narrowed[i].narrow(narrowed[i + 1]), (i / 2) * k.lanes * 4);
    }
  }
  // NaN and infinity would vanish in maxima and integers: x - x is 0 for all but them, and makes the block's scale NaN.
  const poison = k.sumLanes(x.map((v) => v.sub(v)).reduce((a, b) => k.let(a.add(b))));
  const scale = k.let(absMax.div(largest).add(poison));
  // The sums are integers below 2^24, so their order does not matter.
  const sumOf = (from: number, to: number): Value<"f32"> =>
    k.sumLanes(rounded.slice(from, to).reduce((a, b) => k.let(a.add(b))));
  const first = sumOf(0, vectors / 2);
  const second = sumOf(vectors / 2, vectors);
  const negative = k.let(scale.neg());
  k.store("f32", metas, scale, meta.scale);
  k.store("f32", metas, negative.mul(first), meta.negativeSum[0]);
  k.store("f32", metas, negative.mul(second), meta.negativeSum[1]);
  k.store("f32", metas, negative.mul(first.add(second)), meta.negativeSumAll);
}
