/**
 * FlashInfer's first MLA decode (pull request 551): absorbed queries, one for each sequence, over a cache whose rope keys are not rotated:
 * they and the queries are rotated when they are read. Later versions take both rotated: batchMla.ts.
 */
import { type AttentionResult, slidingWindowFrom } from "../attention/index.ts";
import { type CpuDevice, GrowingBuffer } from "../devices/index.ts";
import { type ElementStorage, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { RopeTable } from "../ops/rope/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { requirePositive } from "./attendOnce.ts";
import { pagedBatch } from "./flashinferPages.ts";
import { cacheType, fillGraphBuffers, MlaPlan, requireQueryType, requireTensor } from "./mlaPlan.ts";

/** Options of the wrapper. With useCudaGraph, every batch has the size of the buffers, which take each plan's arrays. */
export interface BatchDecodeMlaOptions {
  readonly useCudaGraph?: boolean;
  /** [batch + 1] */
  readonly pagedKvIndptrBuffer?: Int32Array;
  /** The longest list of pages. */
  readonly pagedKvIndicesBuffer?: Int32Array;
  /** [batch] */
  readonly pagedKvLastPageLenBuffer?: Int32Array;
}

/** Options of a plan, the original's arguments after smScale. */
export interface BatchDecodeMlaPlanOptions {
  /** Keys that a query sees before its own position; -1, the default, is all of them. The original took it and saw all. */
  readonly windowLeft?: number;
  /** logit = cap * tanh(logit / cap); 0, the default, is off. The original took it and did not cap. */
  readonly logitsSoftCap?: number;
  /** Type of both caches; "f16" by default. */
  readonly dataType?: ElementStorage;
  /** Queries and results are f32 here, whatever the cache. */
  readonly qDataType?: "f32";
  /** Positions are divided by it before they rotate; 1 by default. */
  readonly ropeScale?: number;
  /** 10000 by default. */
  readonly ropeTheta?: number;
}

/** Options of a run. */
export interface BatchDecodeMlaRunOptions {
  /** Factors on the logits (the first two) and on the result. */
  readonly qScale?: number;
  readonly kScale?: number;
  readonly vScale?: number;
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  readonly lse?: DeviceTensor;
  /** Also return the LSE, to base 2, [batch, numQoHeads]; false by default. */
  readonly returnLse?: boolean;
}

/** Decode over latents: `plan` once a step, `run` once a layer. A sequence without pages becomes zeros with LSE -infinity. */
export class BatchDecodeMlaWithPagedKVCacheWrapper {
  readonly device: CpuDevice;
  readonly #options: BatchDecodeMlaOptions;
  readonly #plan: MlaPlan;
  readonly #table: GrowingBuffer;
  #numPositions = 0;

  /** Throws ArgumentError if useCudaGraph lacks a buffer, or the buffers are not those of one batch size. */
  constructor(device: CpuDevice, options: BatchDecodeMlaOptions = {}) {
    this.device = device;
    this.#options = options;
    this.#plan = new MlaPlan(device);
    this.#table = new GrowingBuffer(device, "mla rope table");
    if (!options.useCudaGraph) return;
    const { pagedKvIndptrBuffer: indptr, pagedKvLastPageLenBuffer: lengths } = options;
    for (const name of ["pagedKvIndptrBuffer", "pagedKvIndicesBuffer", "pagedKvLastPageLenBuffer"] as const) {
      if (!(options[name] instanceof Int32Array))
        throw new ArgumentError(`${name} must be an Int32Array with useCudaGraph`);
    }
    if (indptr && lengths && indptr.length !== lengths.length + 1) {
      throw new ArgumentError(
        `pagedKvIndptrBuffer.length = ${indptr.length} must be the batch size and 1, ${lengths.length + 1}`,
      );
    }
  }

  /**
   * @param indptr [batch + 1]
   * @param indices Page ids, [indptr[batch]]
   * @param lastPageLen [batch]: tokens in the last page of each sequence, 1 to pageSize
   * @param headDimCompressedKv Channels of a latent; the rope keys have an eighth as many
   * @param smScale (qk nope + qk rope channels)^-0.5 before absorption; see `mlaSoftmaxScale`
   */
  plan(
    indptr: Int32Array,
    indices: Int32Array,
    lastPageLen: Int32Array,
    numQoHeads: number,
    headDimCompressedKv: number,
    pageSize: number,
    smScale: number,
    options: BatchDecodeMlaPlanOptions = {},
  ): void {
    const { windowLeft = -1, logitsSoftCap = 0, dataType = "f16", ropeScale = 1, ropeTheta = 1e4 } = options;
    requireInteger("headDimCompressedKv", headDimCompressedKv, 16);
    const qkRopeHeadDim = headDimCompressedKv / 8;
    if (qkRopeHeadDim % 2 !== 0) {
      throw new ArgumentError(
        `headDimCompressedKv = ${headDimCompressedKv} must be a multiple of 16: an eighth of it rotates in pairs`,
      );
    }
    const storage = cacheType("dataType", dataType);
    requireQueryType("qDataType", options.qDataType);
    requirePositive({ smScale, ropeScale, ropeTheta });
    if (!(logitsSoftCap >= 0))
      throw new ArgumentError(`logitsSoftCap = ${logitsSoftCap} must be positive, or 0 for none`);
    const arrays = { indptr, indices, lastPageLen };
    if (this.#options.useCudaGraph) {
      const { pagedKvIndptrBuffer, pagedKvIndicesBuffer, pagedKvLastPageLenBuffer } = this.#options;
      const buffers = {
        indptr: pagedKvIndptrBuffer,
        indices: pagedKvIndicesBuffer,
        lastPageLen: pagedKvLastPageLenBuffer,
      };
      fillGraphBuffers(buffers, arrays, "indices");
    }
    const queryIndptr = Int32Array.from(indptr, (_, s) => s);
    const names = { indptr: "indptr", indices: "indices", lastPageLen: "lastPageLen" };
    const batch = pagedBatch(arrays, queryIndptr, pageSize, names);
    this.#plan.plan(
      {
        numHeads: numQoHeads,
        kvLoraRank: headDimCompressedKv,
        qkRopeHeadDim,
        pageSize,
        smScale,
        causal: true,
        slidingWindow: slidingWindowFrom({ windowLeft }),
        softCap: logitsSoftCap === 0 ? undefined : logitsSoftCap,
        storage,
        rope: { style: "interleaved" },
      },
      batch,
    );
    this.#numPositions = batch.kvLens.reduce((most, kvLen) => Math.max(most, kvLen), 0);
    const scaling = { type: "linear", factor: ropeScale } as const;
    const dims = { headDim: qkRopeHeadDim, rotaryDim: qkRopeHeadDim, style: "interleaved" } as const;
    const rows = new RopeTable({ ...dims, theta: ropeTheta, scaling }).rows(this.#numPositions);
    this.device.f32(this.#table.reserve(Math.max(4, rows.byteLength))).set(rows);
  }

  /**
   * @param qNope [batch, numQoHeads, headDimCompressedKv] f32: queries times W_UK
   * @param qPe [batch, numQoHeads, headDimCompressedKv / 8] f32, not rotated
   * @param pagedCkvCache [pages, pageSize, headDimCompressedKv]
   * @param pagedKpeCache [pages, pageSize, headDimCompressedKv / 8], not rotated
   * @returns out as qNope, and lse if asked for. Rejects with ShapeError or ArgumentError naming what does not fit.
   */
  async run(
    qNope: DeviceTensor,
    qPe: DeviceTensor,
    pagedCkvCache: DeviceTensor,
    pagedKpeCache: DeviceTensor,
    { qScale = 1, kScale = 1, vScale = 1, out, lse, returnLse = false }: BatchDecodeMlaRunOptions = {},
  ): Promise<AttentionResult> {
    const { spec, batch } = this.#plan.current;
    const { numHeads, kvLoraRank, qkRopeHeadDim, pageSize, storage } = spec;
    requirePositive({ qScale, kScale, vScale });
    requireTensor("qNope", qNope, "f32", [batch.numRows, numHeads, kvLoraRank]);
    requireTensor("qPe", qPe, "f32", [batch.numRows, numHeads, qkRopeHeadDim]);
    requireTensor("pagedCkvCache", pagedCkvCache, storage, ["pages", pageSize, kvLoraRank]);
    requireTensor("pagedKpeCache", pagedKpeCache, storage, ["pages", pageSize, qkRopeHeadDim]);
    return this.#plan.variant(returnLse ? { returnLse, lseBase: "2" } : {}).run({
      qLatent: qNope,
      qPe,
      cache: { ckv: pagedCkvCache, kpe: pagedKpeCache },
      ropeTable: { pointer: this.#table.pointer, shape: [this.#numPositions, qkRopeHeadDim], type: "f32" },
      out,
      lse,
      kScale: qScale * kScale,
      vScale,
    });
  }

  /** Gives all device memory back. */
  release(): void {
    this.#plan.release();
    this.#table.free();
  }
}
