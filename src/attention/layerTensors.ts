/**
 * The tensors that a call takes besides queries, keys and values, for whichever class it is: each must be there if the spec needs it, and
 * absent if the spec does not.
 */
import type { AttentionBatch, AttentionSpec } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError } from "../tensor/index.ts";
import { checkTensor } from "./tensors.ts";

type HeadsSpec = Pick<AttentionSpec, "numQHeads" | "alibi" | "sinks">;

/** Address of a vector with a number for each query head; undefined where there is none. Throws naming it. */
export function headVector(
  name: "alibiSlopes" | "sinks",
  tensor: DeviceTensor | undefined,
  spec: HeadsSpec,
): number | undefined {
  const option = name === "sinks" ? "sinks" : "alibi";
  if (tensor === undefined) {
    if (spec[option]) throw new ArgumentError(`${name} must be given because the spec has ${option}`);
    return undefined;
  }
  if (!spec[option]) throw new ArgumentError(`${name} must be absent: the spec lacks ${option}`);
  checkTensor(name, tensor, "f32", [spec.numQHeads]);
  return tensor.pointer;
}

/** Address of the cos/sin rows of every absolute position of the batch; undefined for a spec without rope. Throws naming `ropeTable`. */
export function ropeTablePointer(
  table: DeviceTensor | undefined,
  rope: { readonly dim: number } | undefined,
  batch: AttentionBatch,
): number | undefined {
  if (!rope) {
    if (table) throw new ArgumentError("ropeTable must be absent: the spec lacks rope");
    return undefined;
  }
  if (!table) throw new ArgumentError("ropeTable must be given because the spec has rope");
  const numPositions = countPositions(batch);
  if (table.shape.length !== 2 || table.shape[0] < numPositions || table.shape[1] !== rope.dim) {
    throw new ShapeError(
      `ropeTable must have shape [at least ${numPositions}, ${rope.dim}], got ${formatShape(table.shape)}`,
    );
  }
  checkTensor("ropeTable", table, "f32", table.shape);
  return table.pointer;
}

/** Checks where a call is to write its LSE, [at least numRows, numQHeads] f32. Throws naming `lse`. */
export function checkLse(
  lse: DeviceTensor,
  { numQHeads, returnLse }: Pick<AttentionSpec, "numQHeads" | "returnLse">,
  numRows: number,
): void {
  if (!returnLse) throw new ArgumentError("lse must be absent: the spec lacks returnLse");
  if (lse.shape.length !== 2 || lse.shape[0] < numRows || lse.shape[1] !== numQHeads) {
    throw new ShapeError(`lse must have shape [at least ${numRows}, ${numQHeads}], got ${formatShape(lse.shape)}`);
  }
  checkTensor("lse", lse, "f32", [lse.shape[0], numQHeads]);
}

/** One more than the largest absolute position of a batch. */
function countPositions({ numSeqs, kvLens, positionOffsets }: AttentionBatch): number {
  let end = 0;
  for (let s = 0; s < numSeqs; s++) end = Math.max(end, kvLens[s] + (positionOffsets?.[s] ?? 0));
  return end;
}
