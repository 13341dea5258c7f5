/**
 * Merging attention states: results over disjoint sets of keys, each with its LSE, become the result over all of them. It is what split
 * keys, shared prefixes, chunked prefill and attention sinks rest on. Source: FlashInfer's merge_state family (arXiv 2501.01005).
 *
 * A state is v = sum_t p_t value_t with weights p that add up to 1, and s = log sum_t exp(logit_t). States i merge to s = log sum_i exp(s_i)
 * and v = sum_i exp(s_i - s) v_i. A state without keys has s = -infinity; +infinity, as FlashMLA writes it, means the same here. What
 * its v holds is never looked at. Only empty states give v = 0 and s = -infinity; one that is alone among empty ones keeps its bits.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import {
  checkPositive,
  checkRows,
  checkVector,
  checkWrittenRows,
  countRows,
  type DeviceTensor,
  type RowsTensor,
} from "../elementwise/rows.ts";

export interface MergeStatesSpec {
  readonly numHeads: number;
  /** Channels of v: any number. */
  readonly headDim: number;
  /** Base of the logarithm in every s, read and written: "e" by default, "2" as FlashInfer has it. States of two bases do not mix. */
  readonly lseBase?: "e" | "2";
}

/** v*, out: [rows, numHeads, headDim] f32; s*, lse: [rows, numHeads] f32. `out` may be vA, and `lse` may be sA or sB. */
export interface MergeStateArgs {
  readonly vA: RowsTensor;
  readonly sA: RowsTensor;
  readonly vB: RowsTensor;
  readonly sB: RowsTensor;
  readonly out: RowsTensor;
  readonly lse: RowsTensor;
  readonly numRows?: number;
}

/** Shapes as in `MergeStateArgs`; v and s become the merged state. */
export interface MergeStateInPlaceArgs {
  readonly v: RowsTensor;
  readonly s: RowsTensor;
  readonly vOther: RowsTensor;
  readonly sOther: RowsTensor;
  /** [rows] u8: rows with 0 stay as they are. */
  readonly mask?: DeviceTensor;
  readonly numRows?: number;
}

/** v: [rows, states, numHeads, headDim] f32; s: [rows, states, numHeads] f32; out: [rows, numHeads, headDim]; lse: [rows, numHeads]. */
export interface MergeManyArgs {
  readonly v: RowsTensor;
  readonly s: RowsTensor;
  readonly out: RowsTensor;
  readonly lse: RowsTensor;
  readonly numRows?: number;
}

/**
 * out: [rows, numHeads, headDim] f32, scaled in place; lse: [rows, numHeads] f32, only read; sinks: [numHeads] f32, natural logits whatever
 * the base of lse.
 */
export interface ApplySinksArgs {
  readonly out: RowsTensor;
  readonly lse: RowsTensor;
  readonly sinks: DeviceTensor;
  readonly numRows?: number;
}

/** Where states lie: the first, and the others after it at equal distances. Addresses and bytes. */
export interface MergeLayout {
  readonly numRows: number;
  readonly numOthers: number;
  readonly v: number;
  readonly s: number;
  readonly vOther: number;
  readonly sOther: number;
  readonly vRowBytes: number;
  readonly sRowBytes: number;
  readonly vOtherRowBytes: number;
  readonly sOtherRowBytes: number;
  /** From one of the others to the next. */
  readonly vStateBytes: number;
  readonly sStateBytes: number;
  readonly out: number;
  readonly lse: number;
  readonly outRowBytes: number;
  readonly lseRowBytes: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkMergeState(spec: MergeStatesSpec, args: MergeStateArgs): MergeLayout {
  return checkPair(spec, args, { v: "vA", s: "sA", vOther: "vB", sOther: "sB" });
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkMergeStateInPlace(spec: MergeStatesSpec, args: MergeStateInPlaceArgs): MergeLayout {
  const { v, s, vOther, sOther, mask } = args;
  const pair = { vA: v, sA: s, vB: vOther, sB: sOther, out: v, lse: s, numRows: args.numRows };
  const layout = checkPair(spec, pair, { v: "v", s: "s", vOther: "vOther", sOther: "sOther" });
  if (mask === undefined) return layout;
  if (mask.type !== "u8") throw new ArgumentError(`mask must be of type u8, got ${mask.type}`);
  if (mask.shape.length !== 1 || mask.shape[0] < layout.numRows) {
    throw new ShapeError(`mask must have shape [${layout.numRows}] or more, got [${mask.shape.join(", ")}]`);
  }
  return layout;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkMergeStates(spec: MergeStatesSpec, args: MergeManyArgs): MergeLayout {
  const { v, s, out, lse } = args;
  const [vLength, sLength] = stateLengths(spec);
  const numRows = countRows(args.numRows, v);
  const numStates = v.shape[1];
  checkPositive("the number of states (v.shape[1])", numStates);
  const vRowBytes = checkRows("v", v, numRows, numStates * vLength) * 4;
  const sRowBytes = checkRows("s", s, numRows, numStates * sLength) * 4;
  if (out.pointer === v.pointer)
    throw new ArgumentError("out must not be v: rows of the one lie among those of the other");
  return {
    numRows,
    numOthers: numStates - 1,
    v: v.pointer,
    s: s.pointer,
    vOther: v.pointer + vLength * 4,
    sOther: s.pointer + sLength * 4,
    vRowBytes,
    sRowBytes,
    vOtherRowBytes: vRowBytes,
    sOtherRowBytes: sRowBytes,
    vStateBytes: vLength * 4,
    sStateBytes: sLength * 4,
    ...checkOutputs(spec, out, lse, numRows),
  };
}

/** Row count and strides in bytes of a call that passed its checks. Throws ShapeError or ArgumentError naming the argument. */
export function checkApplySinks(spec: MergeStatesSpec, { out, lse, sinks, numRows: given }: ApplySinksArgs) {
  const [vLength, sLength] = stateLengths(spec);
  const numRows = countRows(given, out);
  checkVector("sinks", sinks, spec.numHeads);
  return {
    numRows,
    outRowBytes: checkWrittenRows("out", out, numRows, vLength) * 4,
    lseRowBytes: checkRows("lse", lse, numRows, sLength) * 4,
  };
}

function checkPair(
  spec: MergeStatesSpec,
  { vA, sA, vB, sB, out, lse, numRows: given }: MergeStateArgs,
  names: { readonly v: string; readonly s: string; readonly vOther: string; readonly sOther: string },
): MergeLayout {
  const [vLength, sLength] = stateLengths(spec);
  const numRows = countRows(given, vA);
  if (out.pointer === vB.pointer) {
    throw new ArgumentError(`out must not be ${names.vOther}: it is written before that is read`);
  }
  return {
    numRows,
    numOthers: 1,
    v: vA.pointer,
    s: sA.pointer,
    vOther: vB.pointer,
    sOther: sB.pointer,
    vRowBytes: checkRows(names.v, vA, numRows, vLength) * 4,
    sRowBytes: checkRows(names.s, sA, numRows, sLength) * 4,
    vOtherRowBytes: checkRows(names.vOther, vB, numRows, vLength) * 4,
    sOtherRowBytes: checkRows(names.sOther, sB, numRows, sLength) * 4,
    vStateBytes: 0,
    sStateBytes: 0,
    ...checkOutputs(spec, out, lse, numRows),
  };
}

function checkOutputs(spec: MergeStatesSpec, out: RowsTensor, lse: RowsTensor, numRows: number) {
  const [vLength, sLength] = stateLengths(spec);
  return {
    out: out.pointer,
    lse: lse.pointer,
    outRowBytes: checkWrittenRows("out", out, numRows, vLength) * 4,
    lseRowBytes: checkWrittenRows("lse", lse, numRows, sLength) * 4,
  };
}

/** Elements of a row of v and of s. */
function stateLengths({ numHeads, headDim, lseBase = "e" }: MergeStatesSpec): readonly [number, number] {
  checkPositive("numHeads", numHeads);
  checkPositive("headDim", headDim);
  if (lseBase !== "e" && lseBase !== "2") throw new ArgumentError(`lseBase must be "e" or "2", got ${lseBase}`);
  return [numHeads * headDim, numHeads];
}
