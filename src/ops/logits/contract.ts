/**
 * What a sampler needs of the logits before it looks at single tokens: the soft cap, and per row the largest logit, its token, the log of the
 * sum of exponentials, and the best candidates. Penalties, temperature and the draw itself are the engine's sampler's.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import {
  checkPositive,
  checkRows,
  checkWrittenRows,
  countRows,
  type DeviceTensor,
  type RowsTensor,
  rowLength,
} from "../elementwise/rows.ts";

/**
 * Columns that one task sums by itself. The partial results of a row are merged in the order of its chunks, so the bits of a row's statistics depend
 * on this number and on nothing else.
 */
export const CHUNK_COLUMNS = 8192;

/**
 * Columns that one task takes its candidates from. Larger than `CHUNK_COLUMNS`, because a list costs about N (1 + ln(columns / N)) insertions however long its
 * chunk is; the candidates are exact, so this number changes no result.
 */
export const CANDIDATE_CHUNK_COLUMNS = 65_536;

/** Most candidates per row. */
export const MAX_CANDIDATES = 64;

/** Words (4 bytes) of workspace for one chunk of one row: its largest logit and its sum of exponentials. */
export const CHUNK_STATISTICS_WORDS = 2;

/** Soft cap in place: x = cap * tanh(x / cap) (Gemma 2). `logits`: [rows, n] f32; cap > 0. */
export interface SoftCapArgs {
  readonly logits: RowsTensor;
  readonly cap: number;
  readonly numRows?: number;
}

/** Which statistics are wanted besides the maximum and where it is. */
export interface RowStatisticsSpec {
  /** Without it `logSumExp` is not computed and its tensor not needed; greedy decoding saves the exponentials. */
  readonly withLogSumExp: boolean;
}

/**
 * logits: [rows, n] f32. Written for each row: `argmax` (i32, the smallest of the columns with the largest logit), `max` (f32), `logSumExp` (f32,
 * natural). A row with a NaN gives -1, NaN, NaN. A row of -inf alone gives 0, -inf, -inf; one with +inf gives its first +inf, +inf, +inf.
 * `workspace`: at least `rowStatisticsWords(n) * rows` i32 elements, free to be overwritten.
 */
export interface RowStatisticsArgs {
  readonly logits: RowsTensor;
  readonly argmax: DeviceTensor;
  readonly max: DeviceTensor;
  readonly logSumExp?: DeviceTensor;
  readonly workspace: DeviceTensor;
  readonly numRows?: number;
}

/** How many candidates are wanted of each row. */
export interface TopCandidatesSpec {
  /** Candidates per row, 1 to 64. */
  readonly numCandidates: number;
}

/**
 * logits: [rows, n] f32. Written: `tokens` [rows, numCandidates] i32 and `values` [rows, numCandidates] f32, the largest logits in descending order, equal
 * ones by ascending column; exact. NaN is never a candidate. Where a row has fewer than numCandidates numbers above -inf, the rest is token -1, value -inf.
 * `workspace`: at least `topCandidatesWords(n, numCandidates) * rows` i32 elements.
 */
export interface TopCandidatesArgs {
  readonly logits: RowsTensor;
  readonly tokens: DeviceTensor;
  readonly values: DeviceTensor;
  readonly workspace: DeviceTensor;
  readonly numRows?: number;
}

/** Row count, row length and row stride (in elements) of logits that passed their checks. */
export interface CheckedLogits {
  readonly numRows: number;
  readonly length: number;
  readonly stride: number;
}

/** Workspace of `rowStatistics`, in i32 elements per row of n columns. */
export function rowStatisticsWords(n: number): number {
  return Math.ceil(n / CHUNK_COLUMNS) * CHUNK_STATISTICS_WORDS;
}

/** Workspace of `topCandidates`, in i32 elements per row of n columns. */
export function topCandidatesWords(n: number, numCandidates: number): number {
  return Math.ceil(n / CANDIDATE_CHUNK_COLUMNS) * numCandidates * 2;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkSoftCap(args: SoftCapArgs): CheckedLogits {
  if (!(args.cap > 0 && args.cap < Infinity)) {
    throw new ArgumentError(
      `cap must be a finite number above 0, got ${args.cap} (a model without a soft cap does not call this)`,
    );
  }
  const logits = checkLogits(args.logits, args.numRows);
  checkWrittenRows("logits", args.logits, logits.numRows, logits.length);
  return logits;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkRowStatistics(spec: RowStatisticsSpec, args: RowStatisticsArgs): CheckedLogits {
  const logits = checkLogits(args.logits, args.numRows);
  checkWords("argmax", args.argmax, "i32", logits.numRows);
  checkWords("max", args.max, "f32", logits.numRows);
  if (spec.withLogSumExp !== (args.logSumExp !== undefined)) {
    throw new ArgumentError(
      `logSumExp must be given exactly if spec.withLogSumExp is true, which is ${spec.withLogSumExp}`,
    );
  }
  if (args.logSumExp !== undefined) checkWords("logSumExp", args.logSumExp, "f32", logits.numRows);
  checkWords("workspace", args.workspace, "i32", logits.numRows * rowStatisticsWords(logits.length));
  return logits;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkTopCandidates(spec: TopCandidatesSpec, args: TopCandidatesArgs): CheckedLogits {
  const { numCandidates } = spec;
  if (!Number.isInteger(numCandidates) || numCandidates < 1 || numCandidates > MAX_CANDIDATES) {
    throw new ArgumentError(`numCandidates must be a whole number from 1 to ${MAX_CANDIDATES}, got ${numCandidates}`);
  }
  const logits = checkLogits(args.logits, args.numRows);
  checkWords("tokens", args.tokens, "i32", logits.numRows * numCandidates);
  checkWords("values", args.values, "f32", logits.numRows * numCandidates);
  checkWords("workspace", args.workspace, "i32", logits.numRows * topCandidatesWords(logits.length, numCandidates));
  return logits;
}

function checkLogits(logits: RowsTensor, rows: number | undefined): CheckedLogits {
  const numRows = countRows(rows, logits);
  const length = rowLength(logits);
  checkPositive("the row length of logits", length);
  return { numRows, length, stride: checkRows("logits", logits, numRows, length) };
}

function checkWords(argument: string, tensor: DeviceTensor, type: "i32" | "f32", numWords: number): void {
  if (tensor.type !== type) throw new ArgumentError(`${argument} must be of type ${type}, got ${tensor.type}`);
  const available = tensor.shape.reduce((product, extent) => product * extent, 1);
  if (available < numWords) {
    throw new ShapeError(`${argument} must have at least ${numWords} elements, got shape [${tensor.shape.join(", ")}]`);
  }
}
