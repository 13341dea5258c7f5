/**
 * Version 3 of ragged paged attention with its names, layouts, defaults and errors: the keys and values of the new tokens are written to the
 * cache, then attended to. Source: tpu-inference's kernels/ragged_paged_attention/v3 (arXiv 2604.15464). The original runs decode, prefill and mixed
 * sequences as three launches; here one launch takes them all, and `distribution` only says how many there are.
 */
import type { ResultTensor } from "../attention/index.ts";
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import { recordAppendKv } from "../ops/appendKv/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import {
  attendOnce,
  type CompatOptions,
  floatStorage,
  requireHiding,
  requirePositive,
  softCapOf,
} from "./attendOnce.ts";
import { castTensor, roundedRows } from "./castTensor.ts";
import { cacheRows, cacheView, slotsOf, type V3CacheRows } from "./raggedV3Cache.ts";
import {
  alignedChannels,
  checkV3Lengths,
  checkV3Tensors,
  checkV3Tuning,
  type V3Lengths,
  type V3Tuning,
} from "./raggedV3Checks.ts";

/** Options that both forms of version 3 share. */
export interface RaggedPagedAttentionV3Hd64Options extends CompatOptions, V3Tuning {
  /** 1 by default. */
  readonly smScale?: number;
  /** Keys a query sees, its own included; only with a causal mask. */
  readonly slidingWindow?: number;
  /** logit = cap * tanh(logit / cap); not 0. */
  readonly softCap?: number;
  /**
   * What the original puts in place of hidden logits, to hide them. Here they are hidden whatever the number, so that only one that
   * does the same is accepted: at most -65504, the largest of the original's defaults.
   */
  readonly maskValue?: number;
  /** Queries are divided by it, rounded to the cache's type, and the logits multiplied by it. */
  readonly qScale?: number;
  /** What stored keys are multiplied by: `keys` come divided by it. */
  readonly kScale?: number;
  readonly vScale?: number;
}

/** Options of version 3. */
export interface RaggedPagedAttentionV3Options extends RaggedPagedAttentionV3Hd64Options {
  /** True by default. */
  readonly useCausalMask?: boolean;
  /** False reads the cache as it is and ignores `keys` and `values`: layers that share one cache. True by default. */
  readonly updateKvCache?: boolean;
  /** A promise that no key needs masking, only without a causal mask; keys past kvLens are masked all the same. */
  readonly skipKvMask?: boolean;
  /** Type of the result; "f32" by default, as the queries. */
  readonly outDtype?: "f32" | "f16" | "bf16";
}

/** The result, and the cache that was given, with the new tokens in it. */
export interface RaggedPagedAttentionV3Result {
  /** [maxTokens, numQHeads, headDim]; zeros for rows past the sequences. */
  readonly out: ResultTensor;
  readonly kvCache: DeviceTensor;
}

/**
 * Version 3. kvLens count the new tokens: rows cuQLens[s] up to cuQLens[s + 1] of queries, keys and values are the last tokens of sequence
 * s, and row i goes to token kvLens[s] - qLen + i of its pages. Slots of other tokens, and the channels and rows that pad the cache, stay
 * as they are.
 *
 * @param queries [maxTokens, numQHeads, headDim] f32
 * @param keys [maxTokens, numKvHeads, headDim] f32, as `values`; rounded to the cache's type where it is written
 * @param kvCache [pages, pageSize, align(2 * numKvHeads, pack) / pack, pack, align(headDim, 128)] of a floating-point type: keys at even and
 *   values at odd rows. On a TPU pack is the elements of a 32-bit word; in plain memory it changes nothing, and 1 will do.
 * @param kvLens [maxSeqs]
 * @param pageIndices [maxSeqs * pagesPerSeq], flat
 * @param cuQLens [maxSeqs + 1]
 * @param distribution [3]: where the decode sequences end, the prefill sequences, and all
 * @returns Rejects with ShapeError or ArgumentError naming what does not fit; nothing is written then.
 */
export async function raggedPagedAttentionV3(
  device: CpuDevice,
  queries: RowsTensor,
  keys: RowsTensor,
  values: RowsTensor,
  kvCache: DeviceTensor,
  kvLens: Int32Array,
  pageIndices: Int32Array,
  cuQLens: Int32Array,
  distribution: Int32Array,
  options: RaggedPagedAttentionV3Options = {},
): Promise<RaggedPagedAttentionV3Result> {
  const { useCausalMask = true, skipKvMask = false, slidingWindow, outDtype = "f32", out } = options;
  if (useCausalMask && skipKvMask)
    throw new ArgumentError("skipKvMask = true must not be used with useCausalMask = true");
  if (!useCausalMask && slidingWindow !== undefined) {
    throw new ArgumentError(
      `slidingWindow = ${slidingWindow} must be used with useCausalMask = true: it would be ignored`,
    );
  }
  checkV3Tensors(queries, keys, values, kvCache, { rowsPerHead: 2, channels: alignedChannels });
  const channels = kvCache.shape[4];
  const rows = { headStride: 2 * channels, valueOffset: channels };
  const lengths = { kvLens, pageIndices, cuQLens, distribution };
  const tensors = { queries, keys, values, kvCache };
  if (outDtype === "f32") return updateAndAttend(device, tensors, rows, lengths, options);
  if (out && (out.type !== outDtype || !sameShape(out.shape, queries.shape) || out.rowStride !== undefined)) {
    throw new ShapeError(
      `out must be a dense ${outDtype} ${formatShape(queries.shape)}, got ${out.type} ${formatShape(out.shape)}`,
    );
  }
  const result = await updateAndAttend(device, tensors, rows, lengths, { ...options, out: undefined });
  try {
    return { out: castTensor(device, result.out, outDtype, out), kvCache };
  } finally {
    if (result.out.buffer) device.free(result.out.buffer);
  }
}

/**
 * Version 3 for heads of 64 channels, whose keys and values share rows of 128, keys first. Always causal, and always writes.
 *
 * @param kvCache [pages, pageSize, align(numKvHeads, pack) / pack, pack, 128]
 * @param attentionSink [numQHeads] f32 if given: a logit without key and value for each query head
 */
export async function raggedPagedAttentionV3Hd64(
  device: CpuDevice,
  queries: RowsTensor,
  keys: RowsTensor,
  values: RowsTensor,
  kvCache: DeviceTensor,
  kvLens: Int32Array,
  pageIndices: Int32Array,
  cuQLens: Int32Array,
  distribution: Int32Array,
  attentionSink?: DeviceTensor,
  options: RaggedPagedAttentionV3Hd64Options = {},
): Promise<RaggedPagedAttentionV3Result> {
  checkV3Tensors(queries, keys, values, kvCache, { rowsPerHead: 1, channels: () => 128 });
  const headDim = queries.shape[2];
  if (headDim !== 64) throw new ShapeError(`headDim = ${headDim} of queries must be 64`);
  const lengths = { kvLens, pageIndices, cuQLens, distribution };
  const rows = { headStride: 128, valueOffset: 64 };
  return updateAndAttend(device, { queries, keys, values, kvCache }, rows, lengths, options, attentionSink);
}

async function updateAndAttend(
  device: CpuDevice,
  tensors: Readonly<Record<"queries" | "keys" | "values", RowsTensor>> & { readonly kvCache: DeviceTensor },
  rows: V3CacheRows,
  lengths: V3Lengths,
  options: RaggedPagedAttentionV3Options,
  sinks?: DeviceTensor,
): Promise<RaggedPagedAttentionV3Result> {
  const { queries, keys, values, kvCache } = tensors;
  const { smScale = 1, slidingWindow, softCap, maskValue, qScale, kScale = 1, vScale } = options;
  const [numRows, numQHeads, headDim] = queries.shape;
  const numKvHeads = keys.shape[1];
  const [numPages, pageSize] = kvCache.shape;
  const storage = floatStorage("kvCache", kvCache);
  requirePositive({ slidingWindow, qScale, kScale, vScale });
  requireHiding(maskValue);
  checkV3Tuning(options, pageSize);
  const { numSeqs, pagesPerSeq } = checkV3Lengths(lengths, numRows, pageSize);
  const batch: AttentionBatch = {
    numRows,
    numSeqs,
    queryIndptr: lengths.cuQLens,
    kvLens: lengths.kvLens,
    blockTables: lengths.pageIndices,
    maxPages: pagesPerSeq,
    numPages,
  };
  const spec = {
    headDim,
    numQHeads,
    numKvHeads,
    pageSize,
    storage,
    causal: options.useCausalMask ?? true,
    smScale,
    slidingWindow,
    softCap: softCapOf("softCap", softCap),
    sinks: sinks ? true : undefined,
  };
  const temporary: DeviceBuffer[] = [];
  try {
    let q = queries;
    if (qScale !== undefined) {
      const rounded = roundedRows(device, queries, storage, qScale);
      if (rounded.buffer) temporary.push(rounded.buffer);
      q = rounded;
    }
    const slots = slotsOf(batch, pageSize);
    const slotMapping = device.allocate(Math.max(4, slots.byteLength), "slot mapping");
    temporary.push(slotMapping);
    device.i32(slotMapping).set(slots);
    const args = { q, cache: cacheView(kvCache, rows, numKvHeads, headDim), sinks, out: options.out };
    const factors = { kScale: kScale * (qScale ?? 1), vScale };
    const result = await attendOnce(device, spec, batch, { ...args, ...factors }, options, (recorder) => {
      if (options.updateKvCache === false) return;
      recordAppendKv(
        recorder,
        { numKvHeads, headDim, storage },
        {
          k: keys,
          v: values,
          ...cacheRows(kvCache, rows, storage),
          slotMapping: { pointer: slotMapping.pointer, shape: [numRows], type: "i32" },
        },
      );
    });
    return { out: result.out, kvCache };
  } finally {
    for (const buffer of temporary) device.free(buffer);
  }
}
