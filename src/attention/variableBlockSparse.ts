/**
 * Block-sparse attention whose blocks have sizes of their own, and other ones for each key/value head. Each key/value head is a launch of
 * BatchAttention: block rows are its sequences, and the tokens of the visible block columns its pages of one token. Blocks of one size
 * are in blockSparse.ts. Source: FlashInfer's VariableBlockSparseAttentionWrapper.
 */
import type { CpuDevice, DeviceBuffer } from "../devices/index.ts";
import { type AttentionBatch, type AttentionSpec, requireInteger } from "../ops/attention/index.ts";
import { type DeviceTensor, type RowsTensor, recordScale } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError, elementBytes, requireShape } from "../tensor/index.ts";
import { BatchAttention, requirePlan } from "./batchAttention.ts";
import type { BlockSparseArgs } from "./blockSparse.ts";
import { type AttentionResult, freeResult, resultsOf, runRecorded } from "./results.ts";
import { checkHeads, checkTensor, requireType, type StridedTensor } from "./tensors.ts";

/** What compiles a kernel: heads, storage and logits as in AttentionSpec. */
export interface VariableBlockSparseSpec
  extends Pick<
    AttentionSpec,
    "headDim" | "numQHeads" | "numKvHeads" | "smScale" | "softCap" | "returnLse" | "lseBase" | "splitSize"
  > {
  /** Type of k and v; f32 by default. */
  readonly storage?: "f32" | "f16" | "bf16" | "f8e4m3" | "f8e5m2";
}

/** Blocks of each key/value head. Their rows add up to the same number for every head, and so do their columns. */
export interface VariableBlocks {
  /** MB */
  readonly numBlockRows: number;
  /** NB */
  readonly numBlockCols: number;
  /** [numKvHeads, MB, NB]: 0 where the block's queries do not see its keys. */
  readonly blockMaskMap: ArrayLike<number | boolean>;
  /** [numKvHeads, MB]: queries of each block row. */
  readonly blockRowSizes: ArrayLike<number>;
  /** [numKvHeads, NB]: keys of each block column. */
  readonly blockColSizes: ArrayLike<number>;
}

/** Attention over the blocks of a plan. A query without any visible key becomes zeros, with lse -infinity. */
export class VariableBlockSparseAttention {
  readonly device: CpuDevice;
  readonly spec: VariableBlockSparseSpec;
  readonly #heads: readonly BatchAttention[];
  /** Of the last plan. */
  #size: { readonly numRows: number; readonly numCols: number } | undefined;
  /** LSE of one key/value head after the other: the kernel writes rows of all heads that it knows, and a head's launch knows its own. */
  #lse: DeviceBuffer | undefined;

  /** Throws ArgumentError for a spec that is out of range. */
  constructor(device: CpuDevice, spec: VariableBlockSparseSpec) {
    const { numQHeads, numKvHeads, storage = "f32", ...shared } = spec;
    requireInteger("numKvHeads", numKvHeads, 1);
    if (numQHeads % numKvHeads !== 0) {
      throw new ArgumentError(`numQHeads must be a multiple of numKvHeads = ${numKvHeads}, got ${numQHeads}`);
    }
    this.device = device;
    this.spec = spec;
    const one = { ...shared, storage, causal: false, pageSize: 1, numKvHeads: 1, numQHeads: numQHeads / numKvHeads };
    this.#heads = Array.from({ length: numKvHeads }, () => new BatchAttention(device, one));
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    return [this.#size?.numRows, this.#lse?.pointer, ...this.#heads.map(({ recordingKey }) => recordingKey)].join();
  }

  /** Plans blocks. Throws ArgumentError naming what does not fit, and then nothing is planned. */
  plan(blocks: VariableBlocks): void {
    this.#size = undefined;
    const { numKvHeads } = this.spec;
    const { numBlockRows, numBlockCols, blockMaskMap, blockRowSizes, blockColSizes } = blocks;
    requireLength("blockMaskMap", blockMaskMap, numKvHeads * numBlockRows * numBlockCols);
    requireLength("blockRowSizes", blockRowSizes, numKvHeads * numBlockRows);
    requireLength("blockColSizes", blockColSizes, numKvHeads * numBlockCols);
    const rowEnds = blockEnds("blockRowSizes", blockRowSizes, numKvHeads, numBlockRows);
    const colEnds = blockEnds("blockColSizes", blockColSizes, numKvHeads, numBlockCols);
    for (const [head, attention] of this.#heads.entries()) {
      attention.plan(batchOf(blocks, head, rowEnds[head], colEnds[head]));
    }
    const size = { numRows: rowEnds[0][numBlockRows], numCols: colEnds[0][numBlockCols] };
    if (this.spec.returnLse) this.#reserveLse(size.numRows);
    this.#size = size;
  }

  /** Records the launches of one layer. Throws ShapeError or ArgumentError naming the tensor that does not fit. */
  record(recorder: Recorder, args: BlockSparseArgs): AttentionResult {
    const { numQHeads, headDim, returnLse } = this.spec;
    const { numRows: rows, numCols } = requirePlan(this.#size);
    this.#check(args, rows, numCols);
    const lseShape = returnLse ? [rows, numQHeads] : undefined;
    const result = resultsOf(this.device, "block-sparse", args, [rows, numQHeads, headDim], lseShape);
    try {
      for (const head of this.#heads.keys()) this.#recordHead(recorder, head, args, result, rows, numCols);
    } catch (error) {
      freeResult(this.device, result);
      throw error;
    }
    return result;
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BlockSparseArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the plans' device memory back. */
  release(): void {
    this.#size = undefined;
    for (const attention of this.#heads) attention.release();
    if (this.#lse) this.device.free(this.#lse);
    this.#lse = undefined;
  }

  /** Only grows. */
  #reserveLse(numRows: number): void {
    const numBytes = Math.max(4, numRows * this.spec.numQHeads * 4);
    if (this.#lse && this.#lse.numBytes >= numBytes) return;
    if (this.#lse) this.device.free(this.#lse);
    this.#lse = undefined;
    this.#lse = this.device.allocate(numBytes, "block-sparse lse");
  }

  #recordHead(
    recorder: Recorder,
    head: number,
    { q, k, v }: BlockSparseArgs,
    { out, lse }: AttentionResult,
    rows: number,
    numCols: number,
  ): void {
    const { numQHeads, numKvHeads, headDim } = this.spec;
    const group = numQHeads / numKvHeads;
    const heads = (tensor: RowsTensor): RowsTensor => ({
      type: "f32",
      pointer: tensor.pointer + head * group * headDim * 4,
      shape: [rows, group, headDim],
      rowStride: tensor.rowStride ?? numQHeads * headDim,
    });
    const tokens = (tensor: DeviceTensor): StridedTensor => ({
      type: tensor.type,
      pointer: tensor.pointer + head * headDim * elementBytes(tensor.type),
      shape: [numCols, 1, 1, headDim],
      strides: [numKvHeads * headDim, headDim, headDim, 1],
    });
    const own: DeviceTensor | undefined = this.#lse && {
      type: "f32",
      pointer: this.#lse.pointer + head * rows * group * 4,
      shape: [rows, group],
    };
    const cache = { k: tokens(k), v: tokens(v) };
    this.#heads[head].record(recorder, { q: heads(q), cache, out: heads(out), lse: own });
    if (!own || !lse) return;
    const place = { ...lse, pointer: lse.pointer + head * group * 4, shape: [rows, group], rowStride: numQHeads };
    recordScale(recorder, { x: own, factor: 1, out: place });
  }

  /** All that could be wrong is found here, so that nothing throws after the first allocation. */
  #check({ q, k, v, out, lse }: BlockSparseArgs, numRows: number, numCols: number): void {
    const { numQHeads, numKvHeads, headDim, storage = "f32", returnLse } = this.spec;
    checkHeads("q", q, numRows, numQHeads, headDim);
    for (const [name, tensor] of Object.entries({ k, v })) {
      requireType(name, tensor, storage);
      requireShape(name, tensor.shape, [numCols, numKvHeads, headDim]);
    }
    if (out) checkHeads("out", out, numRows, numQHeads, headDim);
    if (lse && !returnLse) throw new ArgumentError("lse must be absent: the spec lacks returnLse");
    if (lse) checkTensor("lse", lse, "f32", [numRows, numQHeads]);
  }
}

/** One key/value head's blocks as sequences over pages of one token. */
function batchOf(
  { numBlockRows, numBlockCols, blockMaskMap }: VariableBlocks,
  head: number,
  rowEnds: Int32Array,
  colEnds: Int32Array,
): AttentionBatch {
  const tokens: number[] = [];
  const pageIndptr = new Int32Array(numBlockRows + 1);
  for (let row = 0; row < numBlockRows; row++) {
    for (let col = 0; col < numBlockCols; col++) {
      if (!blockMaskMap[(head * numBlockRows + row) * numBlockCols + col]) continue;
      for (let token = colEnds[col]; token < colEnds[col + 1]; token++) tokens.push(token);
    }
    pageIndptr[row + 1] = tokens.length;
  }
  return {
    numRows: rowEnds[numBlockRows],
    numSeqs: numBlockRows,
    queryIndptr: rowEnds,
    kvLens: Int32Array.from({ length: numBlockRows }, (_, row) => pageIndptr[row + 1] - pageIndptr[row]),
    blockTables: Int32Array.from(tokens),
    pageIndptr,
    maxPages: 0,
    numPages: colEnds[numBlockCols],
    allowUnseeing: true,
  };
}

/** For each head 0 and the ends of its blocks. Throws ArgumentError for a size that is none, or heads that differ in their sum. */
function blockEnds(name: string, sizes: ArrayLike<number>, numHeads: number, numBlocks: number): Int32Array[] {
  const all = Array.from({ length: numHeads }, (_, head) => {
    const ends = new Int32Array(numBlocks + 1);
    for (let i = 0; i < numBlocks; i++) {
      const size = sizes[head * numBlocks + i];
      requireInteger(`${name}[${head}][${i}]`, size, 0);
      ends[i + 1] = ends[i] + size;
    }
    return ends;
  });
  for (const [head, ends] of all.entries()) {
    if (ends[numBlocks] === all[0][numBlocks]) continue;
    throw new ArgumentError(
      `${name} of every head must add up to that of head 0, ${all[0][numBlocks]}, got ${ends[numBlocks]} for head ${head}`,
    );
  }
  return all;
}

function requireLength(name: string, array: ArrayLike<unknown>, length: number): void {
  if (array.length === length) return;
  throw new ArgumentError(`${name} must have ${length} entries, got ${array.length}`);
}
