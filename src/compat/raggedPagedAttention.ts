/**
 * JAX's ragged_paged_attention with its names, layouts, defaults and errors: version 1 with keys and values in separate pages (JAX #26920),
 * version 2 with combined heads (JAX HEAD and torch_xla). Version 3, which writes the cache too, is in raggedPagedAttentionV3.ts.
 */
import type { KvTensors, ResultTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import {
  addedMask,
  attendOnce,
  type CompatOptions,
  defaultMaskValue,
  floatStorage,
  requireAxes,
  requireGroups,
  requirePositive,
  softCapOf,
} from "./attendOnce.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";

/** Options of version 1. The tuning arguments are checked if given, and otherwise without effect: there is nothing here to tune. */
export interface RaggedPagedAttentionV1Options extends CompatOptions {
  /** 1 by default. */
  readonly smScale?: number;
  /** Added to the logits of hidden keys; -0.7 * the largest f32 by default. */
  readonly maskValue?: number;
  readonly numKvPagesPerBlock?: number;
  readonly numQueriesPerBlock?: number;
  readonly vmemLimitBytes?: number;
}

/** Options of version 2. */
export interface RaggedPagedAttentionV2Options extends RaggedPagedAttentionV1Options {
  /** Keys a query sees, its own included. */
  readonly slidingWindow?: number;
  /** logit = cap * tanh(logit / cap); not 0. */
  readonly softCap?: number;
  /** What stored keys are multiplied by. */
  readonly kScale?: number;
  readonly vScale?: number;
}

/** Pages of either version, and what they say of the spec. */
interface RaggedPages {
  readonly cache: KvTensors;
  readonly numPages: number;
  readonly spec: {
    readonly numKvHeads: number;
    readonly headDim: number;
    readonly pageSize: number;
    readonly storage: ElementStorage;
  };
}

/** Lengths of a call: those of the first numSeqs sequences count, the rest may be anything. */
interface RaggedLengths {
  readonly kvLens: Int32Array;
  readonly pageIndices: PageTable;
  readonly cuQLens: Int32Array;
  readonly numSeqs: Int32Array;
}

/**
 * Version 1. Sequence s owns rows cuQLens[s] up to cuQLens[s + 1] of q, the last of its kvLens[s] tokens, whose keys and values are in
 * pages already; pageIndices[s, j] is the page of its tokens from j * pageSize on. Rows past the sequences become zeros.
 *
 * @param q [maxTokens, numQHeads, headDim] f32
 * @param kPages [pages, pageSize, numKvHeads, headDim] of a floating-point type, as `vPages`
 * @param kvLens [maxSeqs]
 * @param pageIndices [maxSeqs, pagesPerSeq]
 * @param cuQLens [maxSeqs + 1]
 * @param numSeqs [1]
 * @returns [maxTokens, numQHeads, headDim]. Rejects with ShapeError or ArgumentError naming what does not fit.
 */
export async function raggedPagedAttentionV1(
  device: CpuDevice,
  q: RowsTensor,
  kPages: DeviceTensor,
  vPages: DeviceTensor,
  kvLens: Int32Array,
  pageIndices: PageTable,
  cuQLens: Int32Array,
  numSeqs: Int32Array,
  options: RaggedPagedAttentionV1Options = {},
): Promise<ResultTensor> {
  requireAxes("kPages", kPages, "pages, pageSize, numKvHeads, headDim");
  if (!sameShape(kPages.shape, vPages.shape)) {
    throw new ShapeError(
      `vPages.shape = ${formatShape(vPages.shape)} must be kPages.shape = ${formatShape(kPages.shape)}`,
    );
  }
  const lengths = { kvLens, pageIndices, cuQLens, numSeqs };
  const [numPages, pageSize, numKvHeads, headDim] = kPages.shape;
  const spec = { numKvHeads, headDim, pageSize, storage: floatStorage("kPages", kPages) };
  return attend(device, q, { cache: { k: kPages, v: vPages }, numPages, spec }, lengths, options);
}

/**
 * Version 2: as version 1, with keys at the even and values at the odd heads of one array, and more options.
 *
 * @param kvPages [pages, pageSize, 2 * numKvHeads, headDim] of a floating-point type
 */
export async function raggedPagedAttentionV2(
  device: CpuDevice,
  q: RowsTensor,
  kvPages: DeviceTensor,
  kvLens: Int32Array,
  pageIndices: PageTable,
  cuQLens: Int32Array,
  numSeqs: Int32Array,
  options: RaggedPagedAttentionV2Options = {},
): Promise<ResultTensor> {
  requireAxes("kvPages", kvPages, "pages, pageSize, 2 * numKvHeads, headDim");
  const [numPages, pageSize, numCombinedKvHeads, headDim] = kvPages.shape;
  if (numCombinedKvHeads % 2 !== 0) {
    throw new ArgumentError(`numCombinedKvHeads = ${numCombinedKvHeads} must be even: keys and values take turns`);
  }
  const lengths = { kvLens, pageIndices, cuQLens, numSeqs };
  const spec = { numKvHeads: numCombinedKvHeads / 2, headDim, pageSize, storage: floatStorage("kvPages", kvPages) };
  return attend(device, q, { cache: { combined: kvPages }, numPages, spec }, lengths, options);
}

async function attend(
  device: CpuDevice,
  q: RowsTensor,
  { cache, numPages, spec }: RaggedPages,
  lengths: RaggedLengths,
  options: RaggedPagedAttentionV2Options,
): Promise<ResultTensor> {
  requireAxes("q", q, "maxTokens, numQHeads, headDim");
  const [numRows, numQHeads, headDim] = q.shape;
  const { smScale = 1, maskValue = defaultMaskValue, slidingWindow, softCap, kScale, vScale, out } = options;
  if (spec.headDim !== headDim) {
    throw new ShapeError(`headDim of the pages = ${spec.headDim} must be that of q = ${headDim}`);
  }
  requireGroups(numQHeads, spec.numKvHeads);
  if (slidingWindow !== undefined) requirePositive({ slidingWindow });
  checkStatic(lengths, options);
  const count = checkDynamic(lengths, numRows, spec.pageSize);
  const { out: result } = await attendOnce(
    device,
    {
      ...spec,
      numQHeads,
      causal: true,
      smScale,
      slidingWindow,
      softCap: softCapOf("softCap", softCap),
      maskValue: addedMask(maskValue),
    },
    {
      numRows,
      numSeqs: count,
      queryIndptr: lengths.cuQLens,
      kvLens: lengths.kvLens,
      blockTables: lengths.pageIndices.values,
      maxPages: lengths.pageIndices.shape[1],
      numPages,
    },
    { q, cache, out, kScale, vScale },
    options,
  );
  return result;
}

/** What JAX checks while it compiles: shapes and types. */
function checkStatic(
  { kvLens, pageIndices, cuQLens, numSeqs }: RaggedLengths,
  { numKvPagesPerBlock, numQueriesPerBlock, vmemLimitBytes }: RaggedPagedAttentionV1Options,
): void {
  requireInt32("numSeqs", numSeqs, 1);
  requirePageTable("pageIndices", pageIndices);
  const [maxNumSeqs, pagesPerSeq] = pageIndices.shape;
  requireInt32("kvLens", kvLens, maxNumSeqs, ", maxSeqs of pageIndices");
  requireInt32("cuQLens", cuQLens, maxNumSeqs + 1, ", maxSeqs of pageIndices and 1");
  if (numKvPagesPerBlock !== undefined && !(numKvPagesPerBlock > 0 && numKvPagesPerBlock <= pagesPerSeq)) {
    throw new ArgumentError(`numKvPagesPerBlock = ${numKvPagesPerBlock} must be in range (0, ${pagesPerSeq}]`);
  }
  requirePositive({ numQueriesPerBlock, vmemLimitBytes });
}

/** What JAX checks at run time, of the first numSeqs sequences only. Returns their number. */
function checkDynamic(
  { kvLens, pageIndices, cuQLens, numSeqs }: RaggedLengths,
  numRows: number,
  pageSize: number,
): number {
  const [maxNumSeqs, pagesPerSeq] = pageIndices.shape;
  const [count] = numSeqs;
  if (count < 0 || count > maxNumSeqs) {
    throw new ArgumentError(`numSeqs[0] = ${count} must be from 0 to maxSeqs = ${maxNumSeqs}`);
  }
  for (let s = 0; s < count; s++) {
    const minPagesPerSeq = Math.ceil(kvLens[s] / pageSize);
    if (pagesPerSeq < minPagesPerSeq) {
      throw new ArgumentError(
        `pagesPerSeq = ${pagesPerSeq} must be at least ${minPagesPerSeq} for kvLens[${s}] = ${kvLens[s]} and pageSize = ${pageSize}`,
      );
    }
    const qLen = cuQLens[s + 1] - cuQLens[s];
    if (qLen > kvLens[s]) {
      throw new ArgumentError(`qLen = ${qLen} must be at most kvLens[${s}] = ${kvLens[s]} at sequence ${s}`);
    }
  }
  if (cuQLens[count] > numRows) {
    throw new ArgumentError(`cuQLens[numSeqs] = ${cuQLens[count]} must be at most maxTokens = ${numRows}`);
  }
  return count;
}
