/**
 * The kernels of the row statistics and the function that records them: first every chunk of every row by itself, then one task a row that
 * merges its chunks in their order.
 */
import { defineKernel, exp, type KernelBuilder, log, scalar, type Value } from "../../kernels/index.ts";
import { chunkCount, elementAddress, forLanes, forRowChunks, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import {
  CHUNK_COLUMNS,
  CHUNK_STATISTICS_WORDS,
  checkRowStatistics,
  type RowStatisticsArgs,
  type RowStatisticsSpec,
} from "./contract.ts";

/** Registers worked on side by side. */
const NUM_SLOTS = 4;

/** Byte offsets in a chunk's statistics: its largest logit (NaN if it has one), and the sum of exp(logit - largest). */
const CHUNK_MAX = 0;
const CHUNK_SUM = 4;

/** One task is one chunk of one row. */
export const chunkStatisticsKernel = defineKernel({
  name: "chunkStatistics",
  params: { logits: "pointer", workspace: "pointer", length: "i32", stride: "i32" },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { withLogSumExp }: RowStatisticsSpec, p) {
    const chunks = chunkCount(k, p.length, CHUNK_COLUMNS);
    forRowChunks(k, p.length, CHUNK_COLUMNS, (row, first, count, index) => {
      const logits = elementAddress(k, p.logits, row, p.stride, first);
      const statistics = k.let(
        p.workspace.add(
          row
            .mul(chunks)
            .add(index)
            .mul(CHUNK_STATISTICS_WORDS * 4),
        ),
      );
      const max = chunkMax(k, logits, count);
      k.store("f32", statistics, max, CHUNK_MAX);
      if (!withLogSumExp) return;
      // The chunk is in the first-level cache now. Where all are -inf, exp(x - 0) is 0 and exp(x - max) would not be a number.
      const shift = k.let(k.splat(k.select(max.eq(-Infinity), k.f32(0), max)));
      const sums = Array.from({ length: NUM_SLOTS }, () => k.var("f32v", 0));
      forLanes(k, count, NUM_SLOTS, ({ load, slot }) => {
        sums[slot].set(sums[slot].value.add(exp(k, k.let(load(logits, -Infinity).sub(shift)))));
      });
      const sum = k.sumLanes(sums[0].value.add(sums[1].value).add(sums[2].value.add(sums[3].value)));
      k.store("f32", statistics, sum, CHUNK_SUM);
    });
  },
});

/** The largest of `count` logits; NaN if one of them is. */
function chunkMax(k: KernelBuilder, logits: Value<"i32">, count: Value<"i32">): Value<"f32"> {
  const largest = Array.from({ length: NUM_SLOTS }, () => k.var("f32v", -Infinity));
  const unordered = k.var("i32v", 0);
  forLanes(k, count, NUM_SLOTS, ({ load, slot }) => {
    const value = k.let(load(logits, -Infinity));
    largest[slot].set(largest[slot].value.max(value));
    unordered.set(unordered.value.or(value.ne(value)));
  });
  const all = largest[0].value.max(largest[1].value).max(largest[2].value.max(largest[3].value));
  return k.let(k.select(unordered.value.anyTrue(), k.f32(Number.NaN), k.maxLanes(all)));
}

/** One task is one row. */
export const mergeStatisticsKernel = defineKernel({
  name: "mergeStatistics",
  params: {
    logits: "pointer",
    workspace: "pointer",
    argmax: "pointer",
    max: "pointer",
    logSumExp: "pointer",
    length: "i32",
    stride: "i32",
  },
  build(k, { withLogSumExp }: RowStatisticsSpec, p) {
    const chunks = chunkCount(k, p.length, CHUNK_COLUMNS);
    k.forTasks((row) => {
      const statistics = k.let(p.workspace.add(row.mul(chunks).mul(CHUNK_STATISTICS_WORDS * 4)));
      const end = k.let(chunks.mul(CHUNK_STATISTICS_WORDS * 4));
      const forChunks = (body: (max: Value<"f32">, offset: Value<"i32">) => void): void =>
        k.for(0, end, CHUNK_STATISTICS_WORDS * 4, (offset) => {
          body(k.let(k.load("f32", statistics.add(offset), CHUNK_MAX)), offset);
        });

      const largest = k.var("f32", -Infinity);
      const chunk = k.var("i32", 0);
      const hasNaN = k.var("i32", 0);
      forChunks((max, offset) => {
        hasNaN.set(hasNaN.value.or(max.ne(max)));
        k.if(max.gt(largest.value), () => {
          largest.set(max);
          chunk.set(offset);
        });
      });

      const rowWord = k.let(row.shl(2));
      const max = k.let(k.select(hasNaN.value, k.f32(Number.NaN), largest.value));
      k.store("f32", p.max.add(rowWord), max);
      k.if(
        hasNaN.value,
        () => k.store("i32", p.argmax.add(rowWord), -1),
        () => {
          // The first chunk that reaches the maximum has its first column that does.
          const logits = elementAddress(k, p.logits, row, p.stride);
          const column = k.var("i32", chunk.value.divU(CHUNK_STATISTICS_WORDS * 4).mul(CHUNK_COLUMNS));
          k.while(k.load("f32", logits.add(column.value.shl(2))).ne(max), () => column.set(column.value.add(1)));
          k.store("i32", p.argmax.add(rowWord), column.value);
        },
      );
      if (!withLogSumExp) return;

      // An infinite maximum, or none, is the answer by itself.
      const maxIsFinite = k.let(max.sub(max).eq(0));
      const logSumExp = k.var("f32", max);
      k.if(maxIsFinite, () => {
        const sum = k.var("f32", 0);
        forChunks((chunkLargest, offset) => {
          const weight = scalar(k, exp, chunkLargest.sub(max));
          sum.set(sum.value.add(weight.mul(k.load("f32", statistics.add(offset), CHUNK_SUM))));
        });
        logSumExp.set(max.add(scalar(k, log, sum.value)));
      });
      k.store("f32", p.logSumExp.add(rowWord), logSumExp.value);
    });
  },
});

/** Records the statistics of rows. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordRowStatistics(
  { device, commands }: Recorder,
  spec: RowStatisticsSpec,
  args: RowStatisticsArgs,
): void {
  const { numRows, length, stride } = checkRowStatistics(spec, args);
  if (numRows === 0) return;
  const logits = { logits: args.logits.pointer, workspace: args.workspace.pointer, length, stride };
  commands.launch(device.compile(chunkStatisticsKernel, spec), logits, numRows * Math.ceil(length / CHUNK_COLUMNS));
  const results = {
    argmax: args.argmax.pointer,
    max: args.max.pointer,
    logSumExp: args.logSumExp?.pointer ?? 0,
  };
  commands.launch(device.compile(mergeStatisticsKernel, spec), { ...logits, ...results }, numRows);
}
