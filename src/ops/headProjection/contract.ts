/**
 * One matrix for each head, applied to that head's vectors: what absorbs MLA's key up-projection into the queries, and what expands
 * latents to keys and values (DeepSeek-V2, arXiv 2405.04434, section 2.1). The matrices are read where they lie, in `kv_b_proj`.
 */
import { ArgumentError } from "../../tensor/index.ts";
import { checkPositive, countRows, type DeviceTensor } from "../elementwise/rows.ts";
import { checkHeads, checkWrittenHeads, type HeadStrides, type HeadsTensor } from "./heads.ts";

/** What specialises the kernel; heads, tokens and strides are run-time values. W is [rows, columns] for each head. */
export interface HeadProjectionSpec {
  /** "absorb": out[t, h, :] = sum over r of x[t, h, r] W[h][r, :]. "expand": out[t, h, r] = dot(W[h][r, :], x[t, h, :]). */
  readonly kind: "absorb" | "expand";
  readonly rows: number;
  readonly columns: number;
}

/**
 * absorb: x [tokens, heads, rows], out [tokens, heads, columns]; expand: the other way round. `weight` f32 [any rows, columns]: the matrix
 * of head h begins `firstRow + h * headRows` rows into it. `out` must not overlap `x`: it holds partial sums.
 */
export interface HeadProjectionArgs {
  readonly x: HeadsTensor;
  readonly weight: DeviceTensor;
  /** Row of `weight` where the matrix of head 0 begins; 0 by default. */
  readonly firstRow?: number;
  /** Rows from the matrix of one head to that of the next; `rows` by default. */
  readonly headRows?: number;
  readonly out: HeadsTensor;
  /** The tokens of `x` by default. */
  readonly numTokens?: number;
}

/** Counts and strides of a call that passed its checks: in elements, and in rows of the weight. */
export interface CheckedHeadProjection {
  readonly numTokens: number;
  readonly numHeads: number;
  readonly firstRow: number;
  readonly headRows: number;
  readonly x: HeadStrides;
  readonly out: HeadStrides;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkHeadProjection(spec: HeadProjectionSpec, args: HeadProjectionArgs): CheckedHeadProjection {
  const { kind, rows, columns } = spec;
  checkPositive("rows", rows);
  checkPositive("columns", columns);
  const { x, out, weight, firstRow = 0, headRows = rows } = args;
  const numTokens = countRows(args.numTokens, x);
  const numHeads = out.shape[1];
  const inputs = kind === "absorb" ? rows : columns;
  const outputs = kind === "absorb" ? columns : rows;
  const xStrides = checkHeads("x", x, numTokens, numHeads, inputs);
  const outStrides = checkWrittenHeads("out", out, numTokens, numHeads, outputs);
  if (weight.type !== "f32") throw new ArgumentError(`weight must be of type f32, got ${weight.type}`);
  const needed = firstRow + (numHeads - 1) * headRows + rows;
  if (weight.shape.length !== 2 || weight.shape[1] !== columns || weight.shape[0] < needed) {
    throw new ArgumentError(
      `weight must have ${columns} columns and at least ${needed} rows for ${numHeads} heads, got shape [${weight.shape.join(", ")}]`,
    );
  }
  for (const [name, value] of Object.entries({ firstRow, headRows })) {
    if (!Number.isInteger(value) || value < 0) {
      throw new ArgumentError(`${name} must be a whole number of rows, got ${value}`);
    }
  }
  return { numTokens, numHeads, firstRow, headRows, x: xStrides, out: outStrides };
}
