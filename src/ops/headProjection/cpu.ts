/**
 * The kernels of the head projection, and the function that records them. Those of this file go through the weights in the order they lie in memory, a
 * few rows at a time, and meet all tokens of a block with those rows before they go on: a step of few tokens reads each weight once. The
 * order of every sum depends on the spec alone, so a token's bits do not depend on the others'.
 */
import type { CpuDevice } from "../../devices/index.ts";
import { defineKernel, type KernelBuilder, type Value } from "../../kernels/index.ts";
import { forLanes, lanesScratchBytes } from "../elementwise/lanes.ts";
import type { Recorder } from "../recorder.ts";
import { absorbManyKernel } from "./absorbMany.ts";
import { checkHeadProjection, type HeadProjectionArgs, type HeadProjectionSpec } from "./contract.ts";
import { forSlices, least, projectionParams } from "./slices.ts";

type Matrix = Pick<HeadProjectionSpec, "rows" | "columns">;
type Address = Value<"i32">;

/** Rows of the weight that are added at once: their factors stay in registers. */
const ABSORBED_ROWS = 8;

/** Tokens whose sums stay in the first-level cache while all rows of the weight pass. */
const ABSORBED_TOKENS = 8;

/** One task is a slice of the columns of one head; `sliceLength` counts columns. */
export const absorbHeadsKernel = defineKernel({
  name: "absorbHeads",
  params: projectionParams,
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { rows, columns }: Matrix, p) {
    const whole = rows - (rows % ABSORBED_ROWS);
    forSlices(k, p, (head, slice) => {
      const first = k.let(slice.mul(p.sliceLength));
      const count = least(k, p.sliceLength, k.i32(columns).sub(first));
      const weight = k.let(p.weight.add(head.mul(p.weightHeadBytes)).add(first.shl(2)));
      const x = k.let(p.x.add(head.mul(p.xHeadBytes)));
      const out = k.let(p.out.add(head.mul(p.outHeadBytes)).add(first.shl(2)));
      k.for(0, p.numTokens, ABSORBED_TOKENS, (begin) => {
        const end = least(k, begin.add(ABSORBED_TOKENS), p.numTokens);
        k.for(begin, end, 1, (token) => {
          const sums = k.let(out.add(token.mul(p.outRowBytes)));
          forLanes(k, count, 4, ({ store }) => store(sums, k.all("f32v", 0)));
        });
        const addRows = (row: Value<"i32">, numRows: number): void => {
          const weights = k.let(weight.add(row.mul(columns * 4)));
          k.for(begin, end, 1, (token) => {
            const factors = k.let(x.add(token.mul(p.xRowBytes)).add(row.shl(2)));
            const splats = Array.from({ length: numRows }, (_, r) => k.let(k.loadSplatF32(factors, r * 4)));
            const sums = k.let(out.add(token.mul(p.outRowBytes)));
            forLanes(k, count, 1, ({ load, store }) => {
              const sum = k.var("f32v", load(sums));
              for (const [r, splat] of splats.entries()) {
                sum.set(load(weights.add(r * columns * 4)).fma(splat, sum.value));
              }
              store(sums, sum.value);
            });
          });
        };
        if (whole > 0) k.for(0, whole, ABSORBED_ROWS, (row) => addRows(row, ABSORBED_ROWS));
        if (whole < rows) addRows(k.i32(whole), rows - whole);
      });
    });
  },
});

/** Rows of the weight that meet a pair of tokens at once. */
const EXPANDED_ROWS = 4;

/** Tokens whose vectors stay in the second-level cache while all rows of the slice pass. */
const EXPANDED_TOKENS = 64;

/** One task is a slice of the rows of one head; `sliceLength` counts rows, a multiple of four. */
export const expandHeadsKernel = defineKernel({
  name: "expandHeads",
  params: projectionParams,
  build(k, { rows, columns }: Matrix, p) {
    const tail = rows % EXPANDED_ROWS;
    forSlices(k, p, (head, slice) => {
      const first = k.let(slice.mul(p.sliceLength));
      const end = least(k, first.add(p.sliceLength), k.i32(rows));
      const weight = k.let(p.weight.add(head.mul(p.weightHeadBytes)));
      const x = k.let(p.x.add(head.mul(p.xHeadBytes)));
      const out = k.let(p.out.add(head.mul(p.outHeadBytes)));
      k.for(0, p.numTokens, EXPANDED_TOKENS, (block) => {
        const blockEnd = least(k, block.add(EXPANDED_TOKENS), p.numTokens);
        const paired = k.let(block.add(blockEnd.sub(block).and(-2)));
        const dotRows = (row: Value<"i32">, numRows: number): void => {
          const weights = k.let(weight.add(row.mul(columns * 4)));
          const dotTokens = (token: Value<"i32">, numTokens: number): void => {
            const vectors = Array.from({ length: numTokens }, (_, t) => k.let(x.add(token.add(t).mul(p.xRowBytes))));
            const dots = dotTile(k, columns, weights, numRows, vectors);
            for (const [t, tokenDots] of dots.entries()) {
              const target = k.let(out.add(token.add(t).mul(p.outRowBytes)).add(row.shl(2)));
              for (const [r, dot] of tokenDots.entries()) k.store("f32", target, dot, r * 4);
            }
          };
          k.for(block, paired, 2, (token) => dotTokens(token, 2));
          k.if(paired.lt(blockEnd), () => dotTokens(paired, 1));
        };
        k.for(first, least(k, end, k.i32(rows - tail)), EXPANDED_ROWS, (row) => dotRows(row, EXPANDED_ROWS));
        if (tail > 0) k.if(end.eq(rows), () => dotRows(k.i32(rows - tail), tail));
      });
    });
  },
});

/** Dot products of a few vectors with neighbouring rows of the weight: by lane first, the columns past the last register at the end. */
function dotTile(
  k: KernelBuilder,
  columns: number,
  weights: Address,
  numRows: number,
  vectors: readonly Address[],
): Value<"f32">[][] {
  const vectorColumns = columns - (columns % k.lanes);
  const sums = vectors.map(() => Array.from({ length: numRows }, () => k.var("f32v", 0)));
  if (vectorColumns > 0) {
    k.for(0, vectorColumns * 4, k.lanes * 4, (at) => {
      const weightsAt = k.let(weights.add(at));
      const loaded = vectors.map((vector) => k.let(k.load("f32v", vector.add(at))));
      for (let r = 0; r < numRows; r++) {
        const weight = k.let(k.load("f32v", weightsAt, r * columns * 4));
        for (const [t, vector] of loaded.entries()) sums[t][r].set(vector.fma(weight, sums[t][r].value));
      }
    });
  }
  return sums.map((row, t) =>
    row.map((sum, r) => {
      let dot = k.sumLanes(sum.value);
      for (let column = vectorColumns; column < columns; column++) {
        const weight = k.load("f32", weights, (r * columns + column) * 4);
        dot = k.let(dot.add(k.load("f32", vectors[t], column * 4).mul(weight)));
      }
      return k.let(dot);
    }),
  );
}

/** Tasks that each thread should find, so that one which is held up elsewhere delays little. */
const TASKS_PER_THREAD = 4;

/** Outputs of a task at least: a few cache lines of every row that it reads. */
const SHORTEST_SLICE = 32;

/** Tokens from which on it pays to copy a panel of the weight into scratch memory. By measurement; both kernels give the same bits. */
const MANY_TOKENS = 12;

/** Both kernels are compiled for the first call, so that no later step is the first one with many tokens. */
function absorbKernel(device: CpuDevice, spec: Matrix, numTokens: number) {
  const [few, many] = [absorbHeadsKernel, absorbManyKernel].map((kernel) => device.compile(kernel, spec));
  return numTokens < MANY_TOKENS ? few : many;
}

/** Records the product of every head with its matrix. Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function recordHeadProjection(
  { device, commands }: Recorder,
  spec: HeadProjectionSpec,
  args: HeadProjectionArgs,
  options: { readonly overlap?: boolean } = {},
): void {
  const { numTokens, numHeads, firstRow, headRows, x, out } = checkHeadProjection(spec, args);
  if (numTokens === 0) return;
  const { kind, rows, columns } = spec;
  const outputs = kind === "absorb" ? columns : rows;
  const wanted = Math.ceil((device.threads * TASKS_PER_THREAD) / numHeads);
  const sliceLength = Math.max(SHORTEST_SLICE, Math.ceil(outputs / wanted / SHORTEST_SLICE) * SHORTEST_SLICE);
  const slices = Math.ceil(outputs / sliceLength);
  commands.launch(
    kind === "expand"
      ? device.compile(expandHeadsKernel, { rows, columns })
      : absorbKernel(device, { rows, columns }, numTokens),
    {
      x: args.x.pointer,
      weight: args.weight.pointer + firstRow * columns * 4,
      out: args.out.pointer,
      numTokens,
      xRowBytes: x.row * 4,
      xHeadBytes: x.head * 4,
      weightHeadBytes: headRows * columns * 4,
      outRowBytes: out.row * 4,
      outHeadBytes: out.head * 4,
      slices,
      sliceLength,
    },
    numHeads * slices,
    { grain: 1, overlap: options.overlap },
  );
}
