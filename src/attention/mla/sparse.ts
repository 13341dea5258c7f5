/**
 * Latent attention of every query over its own list of cached tokens: what a token indexer picked, as in DeepSeek-V3.2 and FlashMLA's sparse
 * decode. Lists are cleaned on the host once a step; the attention is that of absorbed.ts with pages of one token.
 */
import type { CpuDevice } from "../../devices/index.ts";
import { requireInteger } from "../../ops/attention/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import type { AttentionResult } from "../results.ts";
import { AbsorbedMla, type AbsorbedMlaArgs, type AbsorbedMlaSpec } from "./absorbed.ts";

/** As AbsorbedMlaSpec, for pages of one token that every query sees all of. */
export type SparseMlaSpec = Omit<AbsorbedMlaSpec, "pageSize" | "causal" | "slidingWindow" | "rope">;

/** Which tokens each query attends. */
export interface SparseMlaLists {
  /**
   * [rows, topk]: slots (page * pageSize + offset) of tokens. -1, and everything from numSlots on, is no token; such entries may stand
   * anywhere. A slot that is listed twice counts twice.
   */
  readonly indices: Int32Array;
  readonly topk: number;
  /** Entries of each row that count, from its first on; all by default. */
  readonly topkLengths?: Int32Array;
  /** Tokens the cache holds. */
  readonly numSlots: number;
}

/** Sparse latent attention of one spec on one device: `plan` once a step, `record` once a layer. */
export class SparseMla {
  readonly #attention: AbsorbedMla;
  #slots = new Int32Array(64);

  /** Compiles the kernels. Throws ArgumentError for a spec that is out of range. */
  constructor(device: CpuDevice, spec: SparseMlaSpec) {
    this.#attention = new AbsorbedMla(device, { ...spec, pageSize: 1, causal: false });
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    return this.#attention.recordingKey;
  }

  /** Plans a step of one query for each list. Throws ArgumentError or ShapeError naming what does not fit. */
  plan(lists: SparseMlaLists): void {
    const { indices, topk, topkLengths, numSlots } = lists;
    requireInteger("topk", topk, 1);
    requireInteger("numSlots", numSlots, 0);
    if (indices.length % topk !== 0) {
      throw new ShapeError(`indices must have rows of topk = ${topk} entries, got ${indices.length}`);
    }
    const numRows = indices.length / topk;
    if (topkLengths && topkLengths.length < numRows) {
      throw new ShapeError(`topkLengths must have at least ${numRows} entries, got ${topkLengths.length}`);
    }
    if (this.#slots.length < indices.length) this.#slots = new Int32Array(2 * indices.length);
    const indptr = new Int32Array(numRows + 1);
    for (let row = 0; row < numRows; row++) indptr[row + 1] = this.#appendList(lists, row, indptr[row]);
    this.#attention.plan({
      numRows,
      numSeqs: numRows,
      queryIndptr: Int32Array.from(indptr, (_, row) => row),
      kvLens: Int32Array.from({ length: numRows }, (_, row) => indptr[row + 1] - indptr[row]),
      blockTables: this.#slots,
      maxPages: 0,
      pageIndptr: indptr,
      numPages: numSlots,
      allowUnseeing: true,
    });
  }

  /** Records the attention of one layer; the cache is a tensor of pages of one token. Throws naming the tensor that does not fit. */
  record(recorder: Recorder, args: Omit<AbsorbedMlaArgs, "ropeTable">): AttentionResult {
    return this.#attention.record(recorder, args);
  }

  /** Gives the device memory back. */
  release(): void {
    this.#attention.release();
  }

  /** Appends the tokens of a row's list at `at`, and returns where they end. */
  #appendList({ indices, topk, topkLengths, numSlots }: SparseMlaLists, row: number, at: number): number {
    const length = topkLengths?.[row] ?? topk;
    if (length < 0 || length > topk) {
      throw new ArgumentError(`topkLengths[${row}] must be from 0 to topk = ${topk}, got ${length}`);
    }
    let end = at;
    for (let i = row * topk; i < row * topk + length; i++) {
      const slot = indices[i];
      if (slot < -1) throw new ArgumentError(`indices[${i}] must be a slot or -1, got ${slot}`);
      if (slot >= 0 && slot < numSlots) this.#slots[end++] = slot;
    }
    return end;
  }
}
