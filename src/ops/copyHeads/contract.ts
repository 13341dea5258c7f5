/**
 * Copies the vectors of heads between rows of different layouts, times a factor: puts the two parts of an MLA query side by side, and one
 * rope key behind the keys of every head.
 */
import { ArgumentError } from "../../tensor/index.ts";
import { checkPositive, countRows } from "../elementwise/rows.ts";
import { checkHeads, checkWrittenHeads, type HeadStrides, type HeadsTensor } from "../headProjection/heads.ts";

/** What specialises the kernel. */
export interface CopyHeadsSpec {
  readonly channels: number;
}

/** x, out: [tokens, heads, channels] f32, anywhere in wider rows; x with headStride 0 goes to every head of out. */
export interface CopyHeadsArgs {
  readonly x: HeadsTensor;
  readonly out: HeadsTensor;
  /** 1 by default. */
  readonly factor?: number;
  /** The tokens of `x` by default. */
  readonly numTokens?: number;
}

/** Counts and strides (in elements) of a call that passed its checks. */
export interface CheckedCopyHeads {
  readonly numTokens: number;
  readonly numHeads: number;
  readonly x: HeadStrides;
  readonly out: HeadStrides;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkCopyHeads(
  { channels }: CopyHeadsSpec,
  { x, out, factor, ...args }: CopyHeadsArgs,
): CheckedCopyHeads {
  checkPositive("channels", channels);
  if (factor !== undefined && !Number.isFinite(factor)) {
    throw new ArgumentError(`factor must be a finite number, got ${factor}`);
  }
  const numTokens = countRows(args.numTokens, x);
  const numHeads = out.shape[1];
  return {
    numTokens,
    numHeads,
    x: checkHeads("x", x, numTokens, numHeads, channels),
    out: checkWrittenHeads("out", out, numTokens, numHeads, channels),
  };
}
