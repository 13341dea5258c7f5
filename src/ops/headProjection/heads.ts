/** Vectors of every head of every token in device memory, anywhere in wider rows: the shape that the head-wise operations share. */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import type { DeviceTensor } from "../elementwise/rows.ts";

/**
 * [tokens, heads, channels] f32. Strides are in elements; without them heads and tokens touch. Wider ones select channels of a packed
 * row, such as the rope part of queries; headStride 0 gives all heads the same vector.
 */
export interface HeadsTensor extends DeviceTensor {
  readonly rowStride?: number;
  readonly headStride?: number;
}

/** In elements. */
export interface HeadStrides {
  readonly row: number;
  readonly head: number;
}

/** Checks a [tokens, heads, channels] tensor and returns its strides. Throws ShapeError or ArgumentError naming `argument`. */
export function checkHeads(
  argument: string,
  tensor: HeadsTensor,
  numTokens: number,
  numHeads: number,
  channels: number,
): HeadStrides {
  const { type, pointer, shape } = tensor;
  if (type !== "f32") throw new ArgumentError(`${argument} must be of type f32, got ${type}`);
  if (pointer % 4 !== 0) throw new ArgumentError(`${argument}.pointer must be a multiple of 4, got ${pointer}`);
  if (shape.length !== 3 || shape[0] < numTokens || shape[1] !== numHeads || shape[2] !== channels) {
    throw new ShapeError(
      `${argument} must have shape [at least ${numTokens}, ${numHeads}, ${channels}], got [${shape.join(", ")}]`,
    );
  }
  const head = tensor.headStride ?? channels;
  if (!Number.isInteger(head) || (head < channels && head !== 0)) {
    throw new ArgumentError(`${argument}.headStride must be 0 or an integer of at least ${channels}, got ${head}`);
  }
  const occupied = (numHeads - 1) * head + channels;
  const row = tensor.rowStride ?? (head === 0 ? channels : numHeads * head);
  if (!Number.isInteger(row) || row < occupied) {
    throw new ArgumentError(`${argument}.rowStride must be an integer of at least ${occupied}, got ${row}`);
  }
  return { row, head };
}

/** As `checkHeads`, for a tensor that is written: its heads must not overlap. */
export function checkWrittenHeads(
  argument: string,
  tensor: HeadsTensor,
  numTokens: number,
  numHeads: number,
  channels: number,
): HeadStrides {
  const strides = checkHeads(argument, tensor, numTokens, numHeads, channels);
  if (strides.head === 0 && numHeads > 1) {
    throw new ArgumentError(`${argument}.headStride must be at least ${channels} because its heads are written, got 0`);
  }
  return strides;
}
