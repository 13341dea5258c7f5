/**
 * The gate of a gated MLP, element by element: out = act(gate) * up (Shazeer 2020, arXiv:2002.05202).
 * Matrix products before and after it are `matmul`'s.
 */
import {
  checkPositive,
  checkRows,
  checkWrittenRows,
  countRows,
  type RowsTensor,
  rowLength,
} from "../elementwise/rows.ts";

/**
 * silu: x * sigmoid(x) (Llama, Mistral, Qwen, Phi 3). geluTanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) (Gemma).
 * geluErf: x * Phi(x), with the normal distribution function Phi. relu: max(x, 0).
 */
export type Activation = "silu" | "geluTanh" | "geluErf" | "relu";

export interface GatedActivationSpec {
  readonly activation: Activation;
}

/**
 * gate, up, out: [rows, n] f32; `out` may be `gate` or `up` itself. Gate and up packed in one row [gate | up] of 2n (Phi 3) are two tensors
 * with row stride 2n, the second starting n elements later: see `splitGateUp`. `numRows` defaults to the rows of `gate`.
 */
export interface GatedActivationArgs {
  readonly gate: RowsTensor;
  readonly up: RowsTensor;
  readonly out: RowsTensor;
  readonly numRows?: number;
}

/** Row count, row length and strides (in elements) of a call that passed its checks. */
export interface CheckedGatedActivation {
  readonly numRows: number;
  readonly length: number;
  readonly gateStride: number;
  readonly upStride: number;
  readonly outStride: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkGatedActivation(args: GatedActivationArgs): CheckedGatedActivation {
  const numRows = countRows(args.numRows, args.gate);
  const length = rowLength(args.gate);
  checkPositive("the row length of gate", length);
  return {
    numRows,
    length,
    gateStride: checkRows("gate", args.gate, numRows, length),
    upStride: checkRows("up", args.up, numRows, length),
    outStride: checkWrittenRows("out", args.out, numRows, length),
  };
}

/** The two halves of rows [gate | up]; packed: [rows, 2n] f32. */
export function splitGateUp(packed: RowsTensor): { readonly gate: RowsTensor; readonly up: RowsTensor } {
  const length = rowLength(packed) / 2;
  checkPositive("half the row length of packed", length);
  const gate = { ...packed, shape: [packed.shape[0], length], rowStride: packed.rowStride ?? 2 * length };
  return { gate, up: { ...gate, pointer: packed.pointer + length * 4 } };
}
