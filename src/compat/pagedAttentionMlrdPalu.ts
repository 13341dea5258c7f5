/**
 * Decoding over Palu's latents with the names, arguments and defaults of vLLM's `paged_attention_mlrd_palu_v1` and `_v2` (AnswerDotAI
 * pull request 4), and vLLM's choice between the two. Outputs stay latents: U_v belongs into the output projection.
 *
 * Where the original is wrong or silent this is not: sums are f32 for every cache type, keys and values have ranks of their own, any rank
 * and block size can be stored, and shapes are checked before anything runs. vLLM's denominator of sum + 1e-6 is the sum here.
 */

import {
  type AttentionResult,
  BatchPaluAttention,
  packVisible,
  type ResultTensor,
  runRecorded,
} from "../attention/index.ts";
import { allocateResult } from "../attention/results.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch, PackedMask } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import { requireAxes, requireType } from "./attendOnce.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";
import {
  checkPaluCache,
  latentRows,
  type PaluCacheArgs,
  type PaluCacheShape,
  paluLayerOf,
  paluSpecOf,
} from "./paluCache.ts";

/** Keys that version 2 gives to one task, and that both sum together. */
const PARTITION_SIZE = 512;

/** The arguments of version 1 by their names; what the original has no default for has none here. */
export interface PagedAttentionMlrdPaluArgs extends PaluCacheArgs {
  /** [numSeqs, numQHeads, rankV] f32: written */
  readonly out: RowsTensor;
  /** [numSeqs, numQHeads, headSize] f32 */
  readonly query: RowsTensor;
  readonly numKvHeads: number;
  /** Factor on the logits, usually headSize ** -0.5: of the full head, not of the rank. */
  readonly scale: number;
  /** [numSeqs, maxBlocks]; entries past a sequence's last block are never read. */
  readonly blockTables: PageTable;
  /** [numSeqs] */
  readonly seqLens: Int32Array;
  /** Tokens per block: that of the caches. Any number, where the original has 32. */
  readonly blockSize: number;
  /** At least the largest of seqLens. */
  readonly maxSeqLen: number;
  /** Of no effect: with a head sliding step of 0 all ranks see the same blocks. */
  readonly tpRank?: number;
  readonly blocksparse?: BlocksparseArgs;
}

/**
 * vLLM's block-sparse pattern: a query sees the last `localBlocks` blocks, and every block whose number plus 1 is a multiple of
 * `vertStride`. Off for a stride of at most 1, the default.
 */
export interface BlocksparseArgs {
  readonly localBlocks?: number;
  readonly vertStride?: number;
  /** Tokens of a block of the pattern, a multiple of `blockSize`; 64 by default. */
  readonly blockSize?: number;
  /** Shift of the pattern from head to head. Only 0: all heads of a query share one mask. */
  readonly headSlidingStep?: number;
}

/** What version 2 takes besides: its scratch memory. There is none to give here; what is given must have the right shape. */
export interface PagedAttentionMlrdPaluV2Args extends PagedAttentionMlrdPaluArgs {
  /** [numSeqs, numQHeads, partitions] f32 */
  readonly expSums?: DeviceTensor;
  readonly maxLogits?: DeviceTensor;
  /** [numSeqs, numQHeads, partitions, rankV] f32 */
  readonly tmpOut?: DeviceTensor;
}

/** Decodes each sequence in one task a head. Rejects with ShapeError or ArgumentError naming what does not fit. */
export async function pagedAttentionMlrdPaluV1(device: CpuDevice, args: PagedAttentionMlrdPaluArgs): Promise<void> {
  await decode(device, args, 1);
}

/** Splits long sequences into partitions of 512 keys that run side by side. The same bits as version 1. */
export async function pagedAttentionMlrdPaluV2(device: CpuDevice, args: PagedAttentionMlrdPaluV2Args): Promise<void> {
  checkScratch(args);
  await decode(device, args);
}

/** What vLLM's attention layer passes: version 1's arguments, but `out`, which is allocated here. */
export type ForwardDecodeMlrdPaluArgs = Omit<PagedAttentionMlrdPaluArgs, "out">;

/**
 * `PagedAttention.forward_decode` with `use_mlrd_palu`: picks a version and returns [numSeqs, numQHeads, rankV], which is the caller's to
 * free (`ResultTensor.buffer`).
 */
export async function forwardDecodeMlrdPalu(device: CpuDevice, args: ForwardDecodeMlrdPaluArgs): Promise<ResultTensor> {
  requireAxes("query", args.query, "numSeqs, numQHeads, headSize");
  requireAxes("valueCache", args.valueCache, "numBlocks, blockSize, numKvHeads, rankV");
  const [numSeqs, numQHeads] = args.query.shape;
  const out = allocateResult(device, "palu decode out", [numSeqs, numQHeads, args.valueCache.shape[3]]);
  try {
    const isV1 = usesPagedAttentionV1({ maxSeqLen: args.maxSeqLen, numSeqs, numQHeads });
    await (isV1 ? pagedAttentionMlrdPaluV1 : pagedAttentionMlrdPaluV2)(device, { ...args, out });
    return out;
  } catch (error) {
    if (out.buffer) device.free(out.buffer);
    throw error;
  }
}

/** vLLM's rule: version 1 up to 8192 tokens, where there is one partition or heads enough to keep the device busy. */
export function usesPagedAttentionV1({
  maxSeqLen,
  numSeqs,
  numQHeads,
}: {
  readonly maxSeqLen: number;
  readonly numSeqs: number;
  readonly numQHeads: number;
}): boolean {
  return maxSeqLen <= 8192 && (Math.ceil(maxSeqLen / PARTITION_SIZE) === 1 || numSeqs * numQHeads > 512);
}

async function decode(device: CpuDevice, args: PagedAttentionMlrdPaluArgs, threads?: number): Promise<void> {
  const { query, out, blocksparse = {}, seqLens, alibiSlopes, ropeTable, kScale, vScale } = args;
  requireAxes("query", query, "numSeqs, numQHeads, headSize");
  const [numSeqs, numQHeads, headSize] = query.shape;
  const cache = checkPaluCache(args, numQHeads, headSize);
  checkSizes(args, cache);
  const isSparse = (blocksparse.vertStride ?? 0) > 1;
  const spec = {
    ...paluSpecOf(args, cache, numQHeads, args.scale),
    splitSize: PARTITION_SIZE,
    ...(isSparse && { causal: false, customMask: true }),
  };
  const held: { release(): void }[] = [];
  try {
    const attention = new BatchPaluAttention(device, spec, threads);
    held.push(attention);
    const layer = paluLayerOf(device, spec, args);
    held.push(layer);
    const masked = isSparse && { customMask: sparseMask(blocksparse, seqLens) };
    attention.plan({ ...batchOf(args, cache), ...masked }, { checkPages: args.checkPages });
    const flat = { ...out, shape: [numSeqs, numQHeads * cache.rankV] };
    const tensors = { layer, cache: latentRows(args), q: query, out: flat, alibiSlopes, ropeTable, kScale, vScale };
    await runRecorded(device, (recorder): AttentionResult => attention.record(recorder, tensors));
  } finally {
    for (const each of held) each.release();
  }
}

function batchOf({ blockTables, seqLens }: PagedAttentionMlrdPaluArgs, { numBlocks }: PaluCacheShape): AttentionBatch {
  const numSeqs = seqLens.length;
  return {
    numRows: numSeqs,
    numSeqs,
    queryIndptr: Int32Array.from({ length: numSeqs + 1 }, (_, s) => s),
    kvLens: seqLens,
    blockTables: blockTables.values,
    maxPages: blockTables.shape[1],
    numPages: numBlocks,
    allowUnseeing: true,
  };
}

function checkSizes(args: PagedAttentionMlrdPaluArgs, cache: PaluCacheShape): void {
  const { query, out, numKvHeads, blockTables, seqLens, blockSize, maxSeqLen, tpRank = 0, blocksparse } = args;
  const [numSeqs, numQHeads] = query.shape;
  if (numKvHeads !== cache.numKvHeads) {
    throw new ArgumentError(`numKvHeads = ${numKvHeads} must be the ${cache.numKvHeads} of keyCache`);
  }
  if (blockSize !== cache.blockSize) {
    throw new ArgumentError(`blockSize = ${blockSize} must be the ${cache.blockSize} of keyCache`);
  }
  requireType("out", out, "f32");
  const outShape = [numSeqs, numQHeads, cache.rankV];
  if (!sameShape(out.shape, outShape)) {
    throw new ShapeError(
      `out.shape = ${formatShape(out.shape)} must be [numSeqs, numQHeads, rankV] = ${formatShape(outShape)}: outputs are latents`,
    );
  }
  requirePageTable("blockTables", blockTables);
  if (blockTables.shape[0] !== numSeqs) {
    throw new ShapeError(`blockTables.shape[0] = ${blockTables.shape[0]} must be the ${numSeqs} sequences of query`);
  }
  requireInt32("seqLens", seqLens, numSeqs, ", the sequences of query");
  for (const [s, length] of seqLens.entries()) {
    if (length > maxSeqLen)
      throw new ArgumentError(`seqLens[${s}] = ${length} must be at most maxSeqLen = ${maxSeqLen}`);
  }
  if (!Number.isInteger(tpRank) || tpRank < 0) throw new ArgumentError(`tpRank = ${tpRank} must be a whole number`);
  if (blocksparse) checkBlocksparse(blocksparse, blockSize);
}

function checkBlocksparse(pattern: BlocksparseArgs, cacheBlock: number): void {
  const { localBlocks = 0, vertStride = 0, blockSize = 64, headSlidingStep = 0 } = pattern;
  for (const [name, value] of Object.entries({ localBlocks, vertStride })) {
    if (Number.isInteger(value) && value >= 0) continue;
    throw new ArgumentError(`blocksparse.${name} = ${value} must be a whole number`);
  }
  if (vertStride <= 1) return;
  if (!Number.isInteger(blockSize) || blockSize < 1 || blockSize % cacheBlock !== 0) {
    throw new ArgumentError(
      `blocksparse.blockSize = ${blockSize} must be a positive multiple of blockSize = ${cacheBlock}`,
    );
  }
  if (headSlidingStep !== 0) {
    throw new ArgumentError(
      `blocksparse.headSlidingStep = ${headSlidingStep} must be 0: patterns that differ between heads are not supported`,
    );
  }
}

function sparseMask(
  { localBlocks = 0, vertStride = 0, blockSize = 64 }: BlocksparseArgs,
  seqLens: Int32Array,
): PackedMask {
  return packVisible({ qLens: seqLens.map(() => 1), kvLens: seqLens }, (s, _query, t) => {
    const keyBlock = Math.floor(t / blockSize);
    const isRemote = (keyBlock + 1) % vertStride === 0;
    return isRemote || keyBlock > Math.floor((seqLens[s] - 1) / blockSize) - localBlocks;
  });
}

/** The original's reduction reads its partial results as if they were as wide as heads; here their width is that of the values. */
function checkScratch({
  query,
  valueCache,
  maxSeqLen,
  expSums,
  maxLogits,
  tmpOut,
}: PagedAttentionMlrdPaluV2Args): void {
  const partitions = Math.ceil(maxSeqLen / PARTITION_SIZE);
  const states = [...query.shape.slice(0, 2), partitions];
  const shapes = { expSums: states, maxLogits: states, tmpOut: [...states, valueCache.shape.at(-1) ?? 0] };
  for (const [name, tensor] of Object.entries({ expSums, maxLogits, tmpOut })) {
    if (!tensor) continue;
    const shape = shapes[name as keyof typeof shapes]; // the two objects have the same names
    if (sameShape(tensor.shape, shape)) continue;
    throw new ShapeError(`${name}.shape = ${formatShape(tensor.shape)} must be ${formatShape(shape)}`);
  }
}
