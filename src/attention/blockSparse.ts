/**
 * Attention over a block-sparse matrix of queries and keys in compressed block rows (BSR). A block row is a sequence, its R rows are the
 * queries, and its blocks of C keys are the pages: everything else is BatchAttention's. Blocks of different sizes are in
 * variableBlockSparse.ts. Source: FlashInfer's BlockSparseAttentionWrapper.
 */
import type { CpuDevice } from "../devices/index.ts";
import { type AttentionBatch, type AttentionSpec, requireInteger } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, requireShape } from "../tensor/index.ts";
import { BatchAttention, requirePlan } from "./batchAttention.ts";
import { packVisible } from "./masks.ts";
import type { AttentionResult } from "./results.ts";

/** What compiles a kernel: heads, storage and logits as in AttentionSpec, and the columns of a block. */
export interface BlockSparseSpec
  extends Pick<
    AttentionSpec,
    "headDim" | "numQHeads" | "numKvHeads" | "smScale" | "softCap" | "returnLse" | "lseBase" | "splitSize"
  > {
  /** Type of k and v; f32 by default. */
  readonly storage?: "f32" | "f16" | "bf16" | "f8e4m3" | "f8e5m2";
  /** C: keys of a block. */
  readonly blockCols: number;
  /** Plans bring a mask of the pairs inside the blocks. */
  readonly blockMask?: boolean;
}

/** A matrix of numRows queries and numCols keys with only some of its blocks. */
export interface BlockSparseMatrix {
  /** M: a multiple of blockRows. */
  readonly numRows: number;
  /** N: a multiple of blockCols. */
  readonly numCols: number;
  /** R: queries of a block. */
  readonly blockRows: number;
  /** [numRows / blockRows + 1]: the blocks of block row i are indices[indptr[i]] up to indices[indptr[i + 1]]. */
  readonly indptr: Int32Array;
  /** Block columns, each from 0 to numCols / blockCols - 1. */
  readonly indices: Int32Array;
  /** [blocks, blockRows, blockCols]: 0 hides a pair. For a spec with blockMask. */
  readonly blockMask?: ArrayLike<number | boolean>;
}

/** Tensors of a call; `out` and `lse` are allocated where absent, and then the caller's to free. */
export interface BlockSparseArgs {
  /** [numRows, numQHeads, headDim] f32 */
  readonly q: RowsTensor;
  /** [numCols, numKvHeads, headDim] */
  readonly k: DeviceTensor;
  readonly v: DeviceTensor;
  readonly out?: RowsTensor;
  /** [numRows, numQHeads] */
  readonly lse?: DeviceTensor;
}

/** Attention over the blocks of a plan. A query without any visible key becomes zeros, with lse -infinity. */
export class BlockSparseAttention {
  readonly device: CpuDevice;
  readonly spec: BlockSparseSpec;
  readonly #attention: BatchAttention;
  /** Of the last plan. */
  #numCols: number | undefined;

  /** Throws ArgumentError for a spec that is out of range. */
  constructor(device: CpuDevice, spec: BlockSparseSpec) {
    const { blockCols, blockMask, storage = "f32", ...shared } = spec;
    requireInteger("blockCols", blockCols, 1);
    this.device = device;
    this.spec = spec;
    const customMask = blockMask ? true : undefined;
    this.#attention = new BatchAttention(device, {
      ...shared,
      storage,
      causal: false,
      pageSize: blockCols,
      customMask,
    });
  }

  /** As BatchAttention.recordingKey. */
  get recordingKey(): string {
    return this.#attention.recordingKey;
  }

  /** Plans a matrix. Throws ArgumentError naming what does not fit, and then nothing is planned. */
  plan(matrix: BlockSparseMatrix): void {
    this.#numCols = undefined;
    this.#attention.plan(this.#batchOf(matrix));
    this.#numCols = matrix.numCols;
  }

  /** As BatchAttention.record. */
  record(recorder: Recorder, args: BlockSparseArgs): AttentionResult {
    return this.#attention.record(recorder, this.#paged(args));
  }

  /** As BatchAttention.run. */
  async run(args: BlockSparseArgs): Promise<AttentionResult> {
    return this.#attention.run(this.#paged(args));
  }

  /** Gives the plan's device memory back. */
  release(): void {
    this.#numCols = undefined;
    this.#attention.release();
  }

  #batchOf(matrix: BlockSparseMatrix): AttentionBatch {
    const { blockCols } = this.spec;
    const { numRows, numCols, blockRows, indptr, indices } = matrix;
    requireInteger("blockRows", blockRows, 1);
    requireMultiple("numRows", numRows, "blockRows", blockRows);
    requireMultiple("numCols", numCols, "blockCols", blockCols);
    const numSeqs = numRows / blockRows;
    if (indptr.length !== numSeqs + 1) {
      throw new ArgumentError(
        `indptr must have numRows / blockRows + 1 = ${numSeqs + 1} entries, got ${indptr.length}`,
      );
    }
    const blocksOf = (s: number): number => indptr[s + 1] - indptr[s];
    for (let s = 0; s < numSeqs; s++) {
      if (indptr[s] < 0 || blocksOf(s) < 0 || indptr[s + 1] > indices.length) {
        throw new ArgumentError(
          `indptr must rise from 0 to at most the ${indices.length} indices, got ${indptr[s]} then ${indptr[s + 1]} for block row ${s}`,
        );
      }
      for (let j = indptr[s]; j < indptr[s + 1]; j++) {
        if (indices[j] >= 0 && indices[j] < numCols / blockCols) continue;
        throw new ArgumentError(
          `indices[${j}] = ${indices[j]} is not a block column: there are ${numCols / blockCols}`,
        );
      }
    }
    return {
      numRows,
      numSeqs,
      queryIndptr: Int32Array.from(indptr, (_, s) => s * blockRows),
      kvLens: Int32Array.from({ length: numSeqs }, (_, s) => blocksOf(s) * blockCols),
      blockTables: indices,
      pageIndptr: indptr,
      maxPages: 0,
      numPages: numCols / blockCols,
      customMask: this.#maskOf(matrix, blocksOf),
      allowUnseeing: true,
    };
  }

  #maskOf({ numRows, blockRows, indptr, blockMask }: BlockSparseMatrix, blocksOf: (s: number) => number) {
    const { blockCols, blockMask: hasMask } = this.spec;
    if (!hasMask) {
      if (blockMask) throw new ArgumentError("blockMask must be absent: the spec lacks blockMask");
      return undefined;
    }
    if (!blockMask) throw new ArgumentError("blockMask must be given because the spec has blockMask");
    const numSeqs = numRows / blockRows;
    const expected = indptr[numSeqs] * blockRows * blockCols;
    if (blockMask.length !== expected) {
      throw new ArgumentError(
        `blockMask must have blocks * blockRows * blockCols = ${expected} entries, got ${blockMask.length}`,
      );
    }
    const qLens = new Int32Array(numSeqs).fill(blockRows);
    const kvLens = Int32Array.from({ length: numSeqs }, (_, s) => blocksOf(s) * blockCols);
    return packVisible({ qLens, kvLens }, (s, i, t) => {
      const block = indptr[s] + Math.floor(t / blockCols);
      return Boolean(blockMask[(block * blockRows + i) * blockCols + (t % blockCols)]);
    });
  }

  #paged({ k, v, ...others }: BlockSparseArgs) {
    const { numKvHeads, headDim, blockCols } = this.spec;
    const numCols = requirePlan(this.#numCols);
    const pages = (name: string, tensor: DeviceTensor): DeviceTensor => {
      requireShape(name, tensor.shape, [numCols, numKvHeads, headDim]);
      return { ...tensor, shape: [numCols / blockCols, blockCols, numKvHeads, headDim] };
    };
    return { ...others, cache: { k: pages("k", k), v: pages("v", v) } };
  }
}

function requireMultiple(name: string, value: number, divisorName: string, divisor: number): void {
  if (Number.isInteger(value) && value >= 0 && value % divisor === 0) return;
  throw new ArgumentError(`${name} must be a multiple of ${divisorName} = ${divisor}, got ${value}`);
}
