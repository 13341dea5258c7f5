/**
 * FlashInfer's BatchPrefillWithPagedKVCacheWrapper and BatchPrefillWithRaggedKVCacheWrapper: sequences of any number of queries over pages or
 * over contiguous rows (arXiv 2501.01005).
 */
import type { AttentionResult, KvLayout } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { maskOf } from "./flashinferMasks.ts";
import type { FlashInferPlanOptions, FlashInferRunOptions } from "./flashinferOptions.ts";
import { kvTensors, type PagedKvCache, pagedBatch } from "./flashinferPages.ts";
import { FlashInferPlan } from "./flashinferPlan.ts";
import { requireInt32 } from "./int32Arrays.ts";

/** Options of a prefill plan. A mask wins over `causal`; a window hides keys under either of them, and without them too. */
export interface BatchPrefillPlanOptions extends FlashInferPlanOptions {
  /** Channels of a value; headDimQk by default. */
  readonly headDimVo?: number;
  /** False by default. The last query is at the last key. */
  readonly causal?: boolean;
  /** One flat array: for each sequence [qoLen, kvLen], anything but 0 and false where the query sees the key. */
  readonly customMask?: ArrayLike<number | boolean>;
  /** The same as little-endian bits, each sequence in whole bytes (see packMask); wins over `customMask`. */
  readonly packedCustomMask?: Uint8Array;
}

/**
 * Prefill attention over pages: `plan` once a step, `run` once a layer, `release` at the end. Queries that see no key become zeros with LSE
 * -infinity; more queries than keys are no error. The ALiBi bias is relative to the query's position.
 */
export class BatchPrefillWithPagedKVCacheWrapper {
  readonly #plan: FlashInferPlan;

  /** @param kvLayout "NHD" by default */
  constructor(device: CpuDevice, kvLayout: KvLayout = "NHD") {
    this.#plan = new FlashInferPlan(device, kvLayout);
  }

  /**
   * @param qoIndptr [batch + 1]: the rows of each sequence
   * @param pagedKvIndptr [batch + 1]
   * @param pagedKvIndices Page ids, [pagedKvIndptr[batch]]
   * @param pagedKvLastPageLen [batch]: tokens in the last page of each sequence, 1 to pageSize
   */
  plan(
    qoIndptr: Int32Array,
    pagedKvIndptr: Int32Array,
    pagedKvIndices: Int32Array,
    pagedKvLastPageLen: Int32Array,
    numQoHeads: number,
    numKvHeads: number,
    headDimQk: number,
    pageSize: number,
    options: BatchPrefillPlanOptions = {},
  ): void {
    requireInt32("qoIndptr", qoIndptr);
    const lengths = { indptr: pagedKvIndptr, indices: pagedKvIndices, lastPageLen: pagedKvLastPageLen };
    const names = { indptr: "pagedKvIndptr", indices: "pagedKvIndices", lastPageLen: "pagedKvLastPageLen" };
    const batch = pagedBatch(lengths, qoIndptr, pageSize, names);
    requireInt32("qoIndptr", qoIndptr, batch.numSeqs + 1, ", that of pagedKvIndptr");
    planPrefill(this.#plan, { numQoHeads, numKvHeads, headDimQk, pageSize }, batch, options);
  }

  /**
   * @param q [qoIndptr[batch], numQoHeads, headDimQk] f32
   * @returns out [rows, numQoHeads, headDimVo], and lse [rows, numQoHeads] if asked for. Rejects with ShapeError or ArgumentError naming
   *   what does not fit.
   */
  run(q: RowsTensor, pagedKvCache: PagedKvCache, options: FlashInferRunOptions = {}): Promise<AttentionResult> {
    return this.#plan.run(q, kvTensors(pagedKvCache), options);
  }

  /** Gives all device memory back. */
  release(): void {
    this.#plan.release();
  }
}

/** The same over keys and values that lie one after the other, as they come out of a projection. */
export class BatchPrefillWithRaggedKVCacheWrapper {
  readonly #plan: FlashInferPlan;

  /** @param kvLayout "NHD" by default */
  constructor(device: CpuDevice, kvLayout: KvLayout = "NHD") {
    this.#plan = new FlashInferPlan(device, kvLayout);
  }

  /**
   * @param qoIndptr [batch + 1]: the rows of queries of each sequence
   * @param kvIndptr [batch + 1]: its rows of keys and values
   */
  plan(
    qoIndptr: Int32Array,
    kvIndptr: Int32Array,
    numQoHeads: number,
    numKvHeads: number,
    headDimQk: number,
    options: BatchPrefillPlanOptions = {},
  ): void {
    requireInt32("kvIndptr", kvIndptr);
    const numSeqs = kvIndptr.length - 1;
    if (numSeqs < 0) throw new ArgumentError("kvIndptr.length = 0 must be the batch size and 1");
    requireInt32("qoIndptr", qoIndptr, numSeqs + 1, ", that of kvIndptr");
    for (let s = 0; s < numSeqs; s++) {
      if (kvIndptr[s] >= 0 && kvIndptr[s + 1] >= kvIndptr[s]) continue;
      throw new ArgumentError(
        `kvIndptr[${s + 1}] = ${kvIndptr[s + 1]} must be at least kvIndptr[${s}] = ${kvIndptr[s]}, from 0 on`,
      );
    }
    const batch: AttentionBatch = {
      numRows: qoIndptr[numSeqs],
      numSeqs,
      // Copies, as in flashinferPages.ts.
      queryIndptr: qoIndptr.slice(),
      kvLens: Int32Array.from({ length: numSeqs }, (_, s) => kvIndptr[s + 1] - kvIndptr[s]),
      blockTables: kvIndptr.slice(),
      maxPages: 1,
      numPages: kvIndptr[numSeqs],
      allowUnseeing: true,
    };
    planPrefill(this.#plan, { numQoHeads, numKvHeads, headDimQk }, batch, options);
  }

  /**
   * @param q [qoIndptr[batch], numQoHeads, headDimQk] f32
   * @param k [kvIndptr[batch], numKvHeads, headDimQk]; heads first in HND
   * @param v [kvIndptr[batch], numKvHeads, headDimVo]
   * @returns As the paged wrapper's.
   */
  run(q: RowsTensor, k: DeviceTensor, v: DeviceTensor, options: FlashInferRunOptions = {}): Promise<AttentionResult> {
    return this.#plan.run(q, { k, v }, options);
  }

  /** Gives all device memory back. */
  release(): void {
    this.#plan.release();
  }
}

function planPrefill(
  plan: FlashInferPlan,
  heads: { numQoHeads: number; numKvHeads: number; headDimQk: number; pageSize?: number },
  batch: AttentionBatch,
  options: BatchPrefillPlanOptions,
): void {
  const { headDimVo, causal = false, customMask, packedCustomMask } = options;
  plan.plan({ ...heads, headDimVo, causal, customMask: maskOf(batch, customMask, packedCustomMask) }, batch, options);
}
