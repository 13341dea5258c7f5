/** FlashInfer's BatchDecodeWithPagedKVCacheWrapper: the same number of queries, mostly one, for every sequence (arXiv 2501.01005). */
import type { AttentionResult, KvLayout } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import { requireInteger } from "../ops/attention/index.ts";
import type { RowsTensor } from "../ops/elementwise/index.ts";
import type { FlashInferPlanOptions, FlashInferRunOptions } from "./flashinferOptions.ts";
import { kvTensors, type PagedKvCache, pagedBatch } from "./flashinferPages.ts";
import { FlashInferPlan } from "./flashinferPlan.ts";

/** Options of a decode plan. */
export interface BatchDecodePlanOptions extends FlashInferPlanOptions {
  /** Queries of every sequence, its last tokens: more than one to verify drafted ones. 1 by default. */
  readonly qLenPerReq?: number;
}

/** Options of a decode run. */
export interface BatchDecodeRunOptions extends FlashInferRunOptions {
  /** In place of the plan's. */
  readonly windowLeft?: number;
}

/**
 * Decode attention: `plan` once a step, `run` once a layer. There is no workspace to bring; memory is given back by `release`. A sequence
 * without keys becomes zeros with LSE -infinity. The ALiBi bias is relative to the query's position, so that LSEs of different steps
 * compare; FlashInfer counts from the first key, which adds a constant to each row's logits.
 */
export class BatchDecodeWithPagedKVCacheWrapper {
  readonly #plan: FlashInferPlan;

  /** @param kvLayout "NHD" by default */
  constructor(device: CpuDevice, kvLayout: KvLayout = "NHD") {
    this.#plan = new FlashInferPlan(device, kvLayout);
  }

  /**
   * @param indptr [batch + 1]
   * @param indices Page ids, [indptr[batch]]
   * @param lastPageLen [batch]: tokens in the last page of each sequence, 1 to pageSize
   */
  plan(
    indptr: Int32Array,
    indices: Int32Array,
    lastPageLen: Int32Array,
    numQoHeads: number,
    numKvHeads: number,
    headDim: number,
    pageSize: number,
    options: BatchDecodePlanOptions = {},
  ): void {
    const { qLenPerReq = 1 } = options;
    requireInteger("qLenPerReq", qLenPerReq, 1);
    const queryIndptr = Int32Array.from(indptr, (_, s) => s * qLenPerReq);
    const names = { indptr: "indptr", indices: "indices", lastPageLen: "lastPageLen" };
    const batch = pagedBatch({ indptr, indices, lastPageLen }, queryIndptr, pageSize, names);
    this.#plan.plan({ numQoHeads, numKvHeads, headDimQk: headDim, pageSize, causal: true }, batch, options);
  }

  /**
   * @param q [batch * qLenPerReq, numQoHeads, headDim] f32
   * @returns out as q, and lse [rows, numQoHeads] if asked for. Rejects with ShapeError or ArgumentError naming what does not fit.
   */
  run(q: RowsTensor, pagedKvCache: PagedKvCache, options: BatchDecodeRunOptions = {}): Promise<AttentionResult> {
    return this.#plan.run(q, kvTensors(pagedKvCache), options, options.windowLeft);
  }

  /** Gives all device memory back. */
  release(): void {
    this.#plan.release();
  }
}
