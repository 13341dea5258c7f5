/**
 * JAX's paged_attention: one query a sequence, over pages of floating-point numbers or of 8-bit codes. With its names, layouts, defaults and
 * errors. Source: jax/experimental/pallas/ops/tpu/paged_attention. Several queries a sequence are multiQueriesPagedAttention.ts's.
 */
import type { ResultTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { attendOnce, type CompatOptions, requireAxes, requireHiding, softCapOf } from "./attendOnce.ts";
import type { PageTable } from "./int32Arrays.ts";
import { checkJaxLengths, checkJaxPages, type JaxPages } from "./jaxPages.ts";

/** The last three tune the original's kernel: they are checked as there, and have no other effect. */
export interface PagedAttentionOptions extends CompatOptions {
  /** What the original adds to hide keys past a sequence's length, and so at most -65504: here they take no part at all. */
  readonly maskValue?: number;
  /** logit = cap * tanh(logit / cap); not 0. */
  readonly attnLogitsSoftCap?: number;
  /** Must divide pagesPerSequence; needed in the original. */
  readonly pagesPerComputeBlock?: number;
  readonly megacoreMode?: "kv_head" | "batch";
  readonly inlineSeqDim?: boolean;
}

/**
 * The query of each sequence sees all `lengths` tokens; there is no scale on the logits, queries come multiplied by it. A sequence of length
 * 0 becomes zeros, which the original leaves undefined.
 *
 * @param q [batch, numQHeads, headDim] f32
 * @param kPages [numKvHeads, pages, pageSize, headDim], as `vPages`
 * @param lengths [batch]
 * @param pageIndices [batch, pagesPerSequence]
 * @returns [batch, numQHeads, headDim]. Rejects with ShapeError or ArgumentError naming what does not fit.
 */
export async function pagedAttention(
  device: CpuDevice,
  q: RowsTensor,
  kPages: JaxPages,
  vPages: JaxPages,
  lengths: Int32Array,
  pageIndices: PageTable,
  options: PagedAttentionOptions = {},
): Promise<ResultTensor> {
  requireAxes("q", q, "batch, numQHeads, headDim");
  const [batchSize, numQHeads, headDim] = q.shape;
  const { spec, numPages, cache, scales } = checkJaxPages(kPages, vPages, { numQHeads, headDim });
  checkJaxLengths(lengths, pageIndices, batchSize);
  checkTuning(options, pageIndices.shape[1], spec.numKvHeads, batchSize);
  const { maskValue, attnLogitsSoftCap, out } = options;
  requireHiding(maskValue);
  const { out: result } = await attendOnce(
    device,
    { ...spec, causal: false, softCap: softCapOf("attnLogitsSoftCap", attnLogitsSoftCap) },
    {
      numRows: batchSize,
      numSeqs: batchSize,
      queryIndptr: Int32Array.from({ length: batchSize + 1 }, (_, s) => s),
      kvLens: lengths,
      blockTables: pageIndices.values,
      maxPages: pageIndices.shape[1],
      numPages,
      allowUnseeing: true,
    },
    { q, cache, scales, out },
    options,
  );
  return result;
}

function checkTuning(
  { pagesPerComputeBlock, megacoreMode }: PagedAttentionOptions,
  pagesPerSequence: number,
  numKvHeads: number,
  batchSize: number,
): void {
  if (pagesPerComputeBlock !== undefined && !(pagesPerSequence % pagesPerComputeBlock === 0)) {
    throw new ArgumentError(
      `pagesPerComputeBlock = ${pagesPerComputeBlock} must divide pagesPerSequence = ${pagesPerSequence}`,
    );
  }
  if (megacoreMode === "kv_head" && numKvHeads % 2 !== 0) {
    throw new ArgumentError(`numKvHeads = ${numKvHeads} must be even for megacoreMode = kv_head`);
  }
  if (megacoreMode === "batch" && batchSize % 2 !== 0) {
    throw new ArgumentError(`batch = ${batchSize} must be even for megacoreMode = batch`);
  }
  if (megacoreMode !== undefined && megacoreMode !== "kv_head" && megacoreMode !== "batch") {
    throw new ArgumentError(`megacoreMode = ${megacoreMode} must be kv_head, batch or absent`);
  }
}
