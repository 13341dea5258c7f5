/** The element-wise kernel and the functions that record it. */
import { defineKernel } from "../../kernels/index.ts";
import type { Recorder } from "../recorder.ts";
import {
  type AddBiasArgs,
  biasRows,
  type CheckedRows,
  type CombineRowsArgs,
  checkCombineRows,
  type ElementwiseSpec,
  type ScaleRowsArgs,
} from "./contract.ts";
import { elementAddress, forLanes, forRowChunks, lanesScratchBytes } from "./lanes.ts";
import { countRows, type RowsTensor, rowLength } from "./rows.ts";

/** Elements of one task: enough work to be worth fetching (about a microsecond), few enough that a single row of a small model is shared. */
export const CHUNK_ELEMENTS = 2048;

/** Tasks of `CHUNK_ELEMENTS` at most that `numRows` rows make, and how many of them are worth fetching at once. */
export function rowChunkTasks(numRows: number, length: number): { numTasks: number; grain: number } {
  const numTasks = numRows * Math.ceil(length / CHUNK_ELEMENTS);
  return { numTasks, grain: Math.max(1, Math.floor(CHUNK_ELEMENTS / length)) };
}

export const elementwiseKernel = defineKernel({
  name: "elementwise",
  params: {
    x: "pointer",
    y: "pointer",
    out: "pointer",
    length: "i32",
    xStride: "i32",
    yStride: "i32",
    outStride: "i32",
    factor: "f32",
  },
  scratchBytes: (_spec, target) => lanesScratchBytes(target),
  build(k, { operation }: ElementwiseSpec, p) {
    const factor = k.let(k.splat(p.factor));
    forRowChunks(k, p.length, CHUNK_ELEMENTS, (row, first, count) => {
      const x = elementAddress(k, p.x, row, p.xStride, first);
      const y = elementAddress(k, p.y, row, p.yStride, first);
      const out = elementAddress(k, p.out, row, p.outStride, first);
      forLanes(k, count, 4, ({ load, store }) => {
        const value = load(x);
        if (operation === "scale") store(out, value.mul(factor));
        else store(out, operation === "add" ? value.add(load(y)) : value.mul(load(y)));
      });
    });
  },
});

/** out = x + y, row by row. Throws ShapeError or ArgumentError naming the argument. */
export function recordAdd(recorder: Recorder, args: CombineRowsArgs): void {
  record(recorder, { operation: "add" }, args, checkCombineRows(args, rowLength(args.x)), 0);
}

/** out = x * y, row by row. Throws ShapeError or ArgumentError naming the argument. */
export function recordMultiply(recorder: Recorder, args: CombineRowsArgs): void {
  record(recorder, { operation: "multiply" }, args, checkCombineRows(args, rowLength(args.x)), 0);
}

/** out = x + bias in every row. Throws ShapeError or ArgumentError naming the argument. */
export function recordAddBias(recorder: Recorder, { x, bias, out, numRows }: AddBiasArgs): void {
  const length = rowLength(x);
  const args = { x, y: biasRows(bias, countRows(numRows, x), length), out, numRows };
  record(recorder, { operation: "add" }, args, checkCombineRows(args, length), 0);
}

/** out = x * factor. Throws ShapeError or ArgumentError naming the argument. */
export function recordScale(recorder: Recorder, { x, factor, out, numRows }: ScaleRowsArgs): void {
  const args = { x, y: x, out, numRows };
  record(recorder, { operation: "scale" }, args, checkCombineRows(args, rowLength(x)), factor);
}

function record(
  { device, commands }: Recorder,
  spec: ElementwiseSpec,
  { x, y, out }: { readonly x: RowsTensor; readonly y: RowsTensor; readonly out: RowsTensor },
  { numRows, length, xStride, yStride, outStride }: CheckedRows,
  factor: number,
): void {
  if (numRows === 0) return;
  const { numTasks, grain } = rowChunkTasks(numRows, length);
  commands.launch(
    device.compile(elementwiseKernel, spec),
    { x: x.pointer, y: y.pointer, out: out.pointer, length, xStride, yStride, outStride, factor },
    numTasks,
    { grain },
  );
}
