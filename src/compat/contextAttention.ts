/**
 * Prefill over Palu's latents after a cached context, with the arguments of vLLM's prefix-prefill `context_attention_fwd`: new tokens see
 * the cached context and each other. The original's kernel for latents is only a plan; this is what it was to compute.
 */
import { BatchPaluAttention, type LatentTensors, runRecorded } from "../attention/index.ts";
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import { type RecentWindows, recordAppendLatent, windowPages, windowSlot } from "../ops/appendLatent/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import { type DeviceTensor, type RowsTensor, recordScale } from "../ops/elementwise/index.ts";
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

/** The original's arguments by their names, its caches as `keyCache` and `valueCache`, and U_k. */
export interface ContextAttentionArgs extends PaluCacheArgs {
  /** [tokens, numQHeads, headSize] f32, the new tokens of all sequences */
  readonly q: RowsTensor;
  /** Their key latents, [tokens, numKvHeads, rankK] f32. They are not read from the cache, and need not be in it. */
  readonly k: DeviceTensor;
  /** Their value latents, [tokens, numKvHeads, rankV] f32 */
  readonly v: DeviceTensor;
  /** [tokens, numQHeads, rankV] f32: written */
  readonly o: RowsTensor;
  /** [numSeqs, maxBlocks]: the blocks of each context. */
  readonly bLoc: PageTable;
  /** First row of each sequence, [numSeqs] or [numSeqs + 1]: without gaps from 0 on. */
  readonly bStartLoc: Int32Array;
  /** Context and new tokens, [numSeqs] */
  readonly bSeqLen: Int32Array;
  /** Tokens in the cache, [numSeqs] */
  readonly bCtxLen: Int32Array;
  /** At least the new tokens of any sequence. */
  readonly maxInputLen: number;
  /** Keys a query sees, its own included; 0 (default) for no window. */
  readonly slidingWindow?: number;
  /** headSize ** -0.5 by default, which the original does not let one change. */
  readonly smScale?: number;
}

/** Attention of all new tokens. Rejects with ShapeError or ArgumentError naming what does not fit. */
export async function contextAttentionFwd(device: CpuDevice, args: ContextAttentionArgs): Promise<void> {
  const { q, o, slidingWindow = 0, alibiSlopes, ropeTable, kScale, vScale } = args;
  requireAxes("q", q, "tokens, numQHeads, headSize");
  const [numTokens, numQHeads, headSize] = q.shape;
  const cache = checkPaluCache(args, numQHeads, headSize);
  checkTensors(args, cache);
  const queryIndptr = checkLengths(args);
  if (!Number.isInteger(slidingWindow) || slidingWindow < 0) {
    throw new ArgumentError(`slidingWindow = ${slidingWindow} must be a whole number, 0 for none`);
  }
  const numSeqs = args.bSeqLen.length;
  const batch: AttentionBatch = {
    numRows: numTokens,
    numSeqs,
    queryIndptr,
    kvLens: args.bSeqLen,
    blockTables: args.bLoc.values,
    maxPages: args.bLoc.shape[1],
    numPages: cache.numBlocks,
  };
  const spec = {
    ...paluSpecOf(args, cache, numQHeads, args.smScale ?? headSize ** -0.5),
    slidingWindow: slidingWindow === 0 ? undefined : slidingWindow,
    recent: "f32" as const,
  };
  const held: { release(): void }[] = [];
  try {
    const attention = new BatchPaluAttention(device, spec);
    held.push(attention);
    const layer = paluLayerOf(device, spec, args);
    held.push(layer);
    const newTokens = new NewTokens(device, args, cache, queryIndptr);
    held.push(newTokens);
    attention.plan({ ...batch, recent: newTokens.tokens }, { checkPages: args.checkPages });
    const flat = { ...o, shape: [numTokens, numQHeads * cache.rankV] };
    await runRecorded(device, (recorder) => {
      newTokens.record(recorder, layer);
      const recent = newTokens.tensors;
      const tensors = { layer, cache: latentRows(args), q, recent, out: flat, alibiSlopes, ropeTable };
      return attention.record(recorder, { ...tensors, kScale, vScale });
    });
  } finally {
    for (const each of held) each.release();
  }
}

/**
 * The new tokens as windows of recent ones, which attention reads in place of pages: token t of its sequence at slot t mod capacity, so
 * that one softmax and one set of positions covers context and new tokens.
 */
class NewTokens {
  readonly tokens: NonNullable<AttentionBatch["recent"]>;
  readonly tensors: LatentTensors;
  readonly #device: CpuDevice;
  readonly #args: ContextAttentionArgs;
  readonly #windows: RecentWindows;
  readonly #slots: DeviceTensor;
  readonly #buffers: DeviceBuffer[] = [];

  constructor(device: CpuDevice, args: ContextAttentionArgs, cache: PaluCacheShape, queryIndptr: Int32Array) {
    this.#device = device;
    this.#args = args;
    const numSeqs = args.bSeqLen.length;
    const lengths = Array.from({ length: numSeqs }, (_, s) => queryIndptr[s + 1] - queryIndptr[s]);
    const capacity = Math.max(1, ...lengths);
    const numWindows = Math.max(1, numSeqs);
    const allocate = (...shape: number[]): DeviceTensor => {
      const buffer = device.allocate(
        shape.reduce((a, b) => a * b, 4),
        "new latents",
      );
      this.#buffers.push(buffer);
      return { pointer: buffer.pointer, shape, type: "f32" };
    };
    const { numKvHeads, rankK, rankV } = cache;
    const numTokens = args.q.shape[0];
    try {
      const k = allocate(numWindows, capacity, numKvHeads * rankK);
      const v = allocate(numWindows, capacity, numKvHeads * rankV);
      this.tensors = { k, v };
      this.#windows = { type: "f32", capacity, numWindows, recentK: k.pointer, recentV: v.pointer };
      this.#slots = { ...allocate(Math.max(1, numTokens)), type: "i32" };
    } catch (error) {
      this.release();
      throw error;
    }
    const windows = Int32Array.from({ length: numSeqs }, (_, s) => s);
    this.tokens = { starts: args.bCtxLen, windows, capacity, numWindows };
    // Rows past the last sequence belong to no window.
    const slots = device.i32At(this.#slots.pointer, Math.max(1, numTokens)).fill(-1);
    for (let s = 0; s < numSeqs; s++) {
      for (let i = 0; i < lengths[s]; i++) slots[queryIndptr[s] + i] = windowSlot(s, args.bCtxLen[s] + i, capacity);
    }
  }

  /** Records the copy. The cached latents' scales are applied to all logits and outputs, so new latents are divided by them first. */
  record(recorder: Parameters<typeof recordAppendLatent>[0], layer: ReturnType<typeof paluLayerOf>): void {
    const rows = (tensor: DeviceTensor): DeviceTensor => {
      const [tokens, heads, rank] = tensor.shape;
      return { ...tensor, shape: [tokens, heads * rank] };
    };
    const { k, v, kScale = 1, vScale = 1 } = this.#args;
    recordAppendLatent(
      recorder,
      { storage: "f32" },
      {
        layout: layer.layout,
        table: layer.table,
        k: rows(k),
        v: rows(v),
        ...windowPages(this.#windows),
        slotMapping: this.#slots,
      },
    );
    for (const [tensor, scale] of [
      [this.tensors.k, kScale],
      [this.tensors.v, vScale],
    ] as const) {
      if (scale !== 1) recordScale(recorder, { x: tensor, factor: 1 / scale, out: tensor });
    }
  }

  release(): void {
    for (const buffer of this.#buffers.splice(0)) this.#device.free(buffer);
  }
}

function checkTensors({ q, k, v, o }: ContextAttentionArgs, { numKvHeads, rankK, rankV }: PaluCacheShape): void {
  const [numTokens, numQHeads] = q.shape;
  const shapes = {
    k: [k, [numTokens, numKvHeads, rankK]],
    v: [v, [numTokens, numKvHeads, rankV]],
    o: [o, [numTokens, numQHeads, rankV]],
  } as const;
  for (const [name, [tensor, shape]] of Object.entries(shapes)) {
    requireType(name, tensor, "f32");
    if (!sameShape(tensor.shape, shape)) {
      throw new ShapeError(`${name}.shape = ${formatShape(tensor.shape)} must be ${formatShape(shape)}`);
    }
  }
}

/** Returns the first row of each sequence, and the end of the last. */
function checkLengths({ q, bLoc, bStartLoc, bSeqLen, bCtxLen, maxInputLen }: ContextAttentionArgs): Int32Array {
  requirePageTable("bLoc", bLoc);
  requireInt32("bSeqLen", bSeqLen);
  const numSeqs = bSeqLen.length;
  requireInt32("bCtxLen", bCtxLen, numSeqs, ", the sequences of bSeqLen");
  requireInt32("bStartLoc", bStartLoc);
  if (bStartLoc.length !== numSeqs && bStartLoc.length !== numSeqs + 1) {
    throw new ShapeError(`bStartLoc.length = ${bStartLoc.length} must be ${numSeqs} or ${numSeqs + 1}`);
  }
  if (bLoc.shape[0] !== numSeqs) {
    throw new ShapeError(`bLoc.shape[0] = ${bLoc.shape[0]} must be the ${numSeqs} sequences of bSeqLen`);
  }
  const indptr = new Int32Array(numSeqs + 1);
  for (let s = 0; s < numSeqs; s++) {
    const numNew = bSeqLen[s] - bCtxLen[s];
    if (bCtxLen[s] < 0 || numNew < 0) {
      throw new ArgumentError(`bCtxLen[${s}] = ${bCtxLen[s]} must be from 0 to bSeqLen[${s}] = ${bSeqLen[s]}`);
    }
    if (numNew > maxInputLen) {
      throw new ArgumentError(
        `maxInputLen = ${maxInputLen} must be at least the ${numNew} new tokens of sequence ${s}`,
      );
    }
    indptr[s + 1] = indptr[s] + numNew;
  }
  for (const [s, start] of bStartLoc.entries()) {
    if (start !== indptr[s])
      throw new ArgumentError(`bStartLoc[${s}] = ${start} must be ${indptr[s]}: rows without gaps`);
  }
  if (indptr[numSeqs] > q.shape[0]) {
    throw new ShapeError(`q must have at least the ${indptr[numSeqs]} new tokens of all sequences, got ${q.shape[0]}`);
  }
  return indptr;
}
