/**
 * The paged attention of pytorch/xla's multi-queries RFC (#8597): a rectangle of queries, of which each sequence uses the first ones. With its
 * names, layouts, defaults and errors. Source: torch_xla's pallas_kernels/multi_queries_paged_attention_kernel.py (#8328, #8356).
 */
import type { ResultTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import {
  addedMask,
  attendOnce,
  type CompatOptions,
  defaultMaskValue,
  requireAxes,
  requirePositive,
  softCapOf,
} from "./attendOnce.ts";
import type { PageTable } from "./int32Arrays.ts";
import { checkJaxLengths, checkJaxPages, type JaxPages } from "./jaxPages.ts";

/** The block sizes tune the original's kernel: they are checked as there if given, and have no other effect. */
export interface MultiQueriesPagedAttentionOptions extends CompatOptions {
  /** Added to the logits of hidden keys; -0.7 * the largest f32 by default. */
  readonly maskValue?: number;
  /** Must divide pagesPerSequence; needed in the original. */
  readonly numKvPagesPerComputeBlock?: number;
  /** At most maxQueries; 4 in the original. */
  readonly numQueriesPerComputeBlock?: number;
  /** logit = cap * tanh(logit / cap); not 0. */
  readonly attnLogitsSoftCap?: number;
}

/**
 * Queries i < effectiveQLens[b] of sequence b are the last ones of its lengths[b] tokens, whose keys and values are in pages already; each
 * sees the tokens up to its own. The other rows become zeros, which the original leaves undefined. There is no scale on the logits:
 * queries come multiplied by it.
 *
 * @param q [batch, maxQueries, numQHeads, headDim] f32, dense
 * @param kPages [numKvHeads, pages, pageSize, headDim], as `vPages`
 * @param lengths [batch]
 * @param pageIndices [batch, pagesPerSequence]
 * @param effectiveQLens [batch]
 * @returns [batch, maxQueries, numQHeads, headDim]. Rejects with ShapeError or ArgumentError naming what does not fit.
 */
export async function multiQueriesPagedAttention(
  device: CpuDevice,
  q: DeviceTensor,
  kPages: JaxPages,
  vPages: JaxPages,
  lengths: Int32Array,
  pageIndices: PageTable,
  effectiveQLens: Int32Array,
  options: MultiQueriesPagedAttentionOptions = {},
): Promise<ResultTensor> {
  requireAxes("q", q, "batch, maxQueries, numQHeads, headDim");
  const [batchSize, maxQueries, numQHeads, headDim] = q.shape;
  const { spec, numPages, cache, scales } = checkJaxPages(kPages, vPages, { numQHeads, headDim });
  checkJaxLengths(lengths, pageIndices, batchSize, effectiveQLens);
  checkTuning(options, pageIndices.shape[1], maxQueries);
  checkQueries(lengths, effectiveQLens, maxQueries);
  const { maskValue = defaultMaskValue, attnLogitsSoftCap, out } = options;
  if (out && (!sameShape(out.shape, q.shape) || out.rowStride !== undefined)) {
    throw new ShapeError(
      `out.shape = ${formatShape(out.shape)} must be q.shape = ${formatShape(q.shape)}, without rowStride`,
    );
  }
  const flatShape = [batchSize * maxQueries, numQHeads, headDim];
  const flat = ({ pointer, type }: DeviceTensor): DeviceTensor => ({ pointer, type, shape: flatShape });
  const { out: result } = await attendOnce(
    device,
    {
      ...spec,
      causal: true,
      softCap: softCapOf("attnLogitsSoftCap", attnLogitsSoftCap),
      maskValue: addedMask(maskValue),
    },
    paddedBatch(lengths, pageIndices, effectiveQLens, maxQueries, numPages),
    { q: flat(q), cache, scales, out: out && flat(out) },
    options,
  );
  return out ?? { ...result, shape: q.shape };
}

/** Between the sequences lie the padding rows, each run of them a sequence without keys: those rows become zeros. */
function paddedBatch(
  lengths: Int32Array,
  { values, shape }: PageTable,
  effectiveQLens: Int32Array,
  maxQueries: number,
  numPages: number,
): AttentionBatch {
  const batchSize = lengths.length;
  const queryIndptr = new Int32Array(2 * batchSize + 1);
  const kvLens = new Int32Array(2 * batchSize);
  const pageIndptr = new Int32Array(2 * batchSize + 1);
  for (let b = 0; b < batchSize; b++) {
    queryIndptr[2 * b + 1] = b * maxQueries + effectiveQLens[b];
    queryIndptr[2 * b + 2] = (b + 1) * maxQueries;
    kvLens[2 * b] = lengths[b];
    pageIndptr[2 * b + 1] = pageIndptr[2 * b + 2] = (b + 1) * shape[1];
  }
  const ragged = { numRows: batchSize * maxQueries, numSeqs: 2 * batchSize, queryIndptr, kvLens };
  return { ...ragged, blockTables: values, pageIndptr, maxPages: shape[1], numPages, allowUnseeing: true };
}

function checkTuning(
  { numKvPagesPerComputeBlock, numQueriesPerComputeBlock }: MultiQueriesPagedAttentionOptions,
  pagesPerSequence: number,
  maxQueries: number,
): void {
  requirePositive({ numKvPagesPerComputeBlock, numQueriesPerComputeBlock });
  if (numQueriesPerComputeBlock !== undefined && numQueriesPerComputeBlock > maxQueries) {
    throw new ArgumentError(
      `numQueriesPerComputeBlock = ${numQueriesPerComputeBlock} must be at most maxQueries = ${maxQueries}`,
    );
  }
  if (numKvPagesPerComputeBlock === undefined) return;
  if (numKvPagesPerComputeBlock > pagesPerSequence) {
    throw new ArgumentError(
      `numKvPagesPerComputeBlock = ${numKvPagesPerComputeBlock} must be at most pagesPerSequence = ${pagesPerSequence}`,
    );
  }
  if (pagesPerSequence % numKvPagesPerComputeBlock !== 0) {
    throw new ArgumentError(
      `numKvPagesPerComputeBlock = ${numKvPagesPerComputeBlock} must divide pagesPerSequence = ${pagesPerSequence}`,
    );
  }
}

/** Not checked by the original, whose result would mean nothing. */
function checkQueries(lengths: Int32Array, effectiveQLens: Int32Array, maxQueries: number): void {
  for (let b = 0; b < lengths.length; b++) {
    const most = Math.min(maxQueries, lengths[b]);
    if (effectiveQLens[b] >= 0 && effectiveQLens[b] <= most) continue;
    throw new ArgumentError(
      `effectiveQLens[${b}] = ${effectiveQLens[b]} must be from 0 to maxQueries = ${maxQueries} and lengths[${b}] = ${lengths[b]}`,
    );
  }
}
