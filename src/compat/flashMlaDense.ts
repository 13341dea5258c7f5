/** FlashMLA's attention over page tables: each kv head with its query heads is a latent attention of its own. */
import { fp8TokenLayout, type StridedTensor } from "../attention/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, elementBytes, ShapeError } from "../tensor/index.ts";
import { checkFlashMlaCache, type FlashMlaCall } from "./flashMlaCall.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";

/** Tokens of a page: the original's kernels know no other. */
const PAGE_SIZE = 64;

const sparseOptions = ["attnSink", "extraKCache", "extraIndicesInKvcache", "topkLength", "extraTopkLength"] as const;

/** Records the attention of one layer. Returns the LSEs of each kv head, [batch * queries, query heads of one]. */
export function recordFlashMlaDense(
  recorder: Recorder,
  call: FlashMlaCall,
  kCache: DeviceTensor,
  blockTable: PageTable | undefined,
  cacheSeqlens: Int32Array | undefined,
): DeviceTensor[] {
  const { batch, queries, heads, channels, headDimV, softmaxScale, isFp8Kvcache, options } = call;
  for (const name of sparseOptions) {
    if (options[name] === undefined) continue;
    throw new ArgumentError(`${name} must be absent without indices: it is for sparse attention`);
  }
  if (!blockTable || !cacheSeqlens) {
    throw new ArgumentError(`${blockTable ? "cacheSeqlens" : "blockTable"} must be given without indices`);
  }
  const { numKvHeads, storage } = checkFlashMlaCache("kCache", call, kCache);
  const [numPages, pageSize] = kCache.shape;
  if (pageSize !== PAGE_SIZE) {
    throw new ShapeError(`kCache.shape[1] = ${pageSize} must be ${PAGE_SIZE}, the tokens of a page`);
  }
  if (heads % numKvHeads !== 0) {
    throw new ArgumentError(`heads of q = ${heads} must be divisible by those of kCache = ${numKvHeads}`);
  }
  const group = heads / numKvHeads;
  const { causal = false } = options;
  const dims = { numHeads: group, kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV };
  const attention = call.metadata.dense(
    { batch, queries, heads, numKvHeads, causal, softmaxScale, kCache: kCache.type },
    call.device,
    { ...dims, pageSize, storage, causal, smScale: softmaxScale, returnLse: true },
    stepOf(call, blockTable, cacheSeqlens, numPages),
  );
  const rowUnits = isFp8Kvcache ? fp8TokenLayout(dims).numBytes : channels;
  return Array.from({ length: numKvHeads }, (_, head) => {
    const lse = call.scratch([batch * queries, group]);
    const fused: StridedTensor = {
      ...kCache,
      pointer: kCache.pointer + head * rowUnits * elementBytes(kCache.type),
      shape: [numPages, pageSize, rowUnits],
      strides: [pageSize * numKvHeads * rowUnits, numKvHeads * rowUnits, 1],
    };
    const headsOf = (tensor: DeviceTensor, width: number): RowsTensor => ({
      pointer: tensor.pointer + head * group * width * 4,
      shape: [batch * queries, group, width],
      rowStride: heads * width,
      type: tensor.type,
    });
    attention.record(recorder, {
      q: headsOf(call.q, channels),
      cache: { fused },
      out: headsOf(call.out, headDimV),
      lse,
    });
    return lse;
  });
}

function stepOf(
  { batch, queries }: FlashMlaCall,
  blockTable: PageTable,
  cacheSeqlens: Int32Array,
  numPages: number,
): AttentionBatch {
  requireInt32("cacheSeqlens", cacheSeqlens, batch, ", the batch of q");
  requirePageTable("blockTable", blockTable);
  const [rows, maxPages] = blockTable.shape;
  if (rows !== batch) throw new ShapeError(`blockTable.shape[0] = ${rows} must be ${batch}, the batch of q`);
  return {
    numRows: batch * queries,
    numSeqs: batch,
    queryIndptr: Int32Array.from({ length: batch + 1 }, (_, s) => s * queries),
    kvLens: cacheSeqlens,
    blockTables: blockTable.values,
    maxPages,
    numPages,
    allowUnseeing: true,
  };
}
