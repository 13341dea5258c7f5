/**
 * Golden cases of attention under masks: one bit for each query and key, blocks of one size (BSR), and blocks whose sizes differ between
 * key/value heads. All are calls of the same op, with blocks of keys as pages or with contiguous rows.
 */
import { packVisible } from "../src/attention/masks.ts";
import { nhdStrides } from "../src/ops/attention/storage.ts";
import { type AttentionCall, type AttentionResults, contiguousBatch, runCall } from "./attentionCall.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import type { NumberArray } from "./inputs.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** The packed bits are an expected output too. */
export async function runCustomMask(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  if (golden.file.params.causal !== false) throw new Error("params.causal must be false");
  const rows = contiguousBatch(golden.integers("qo_indptr"), golden.integers("kv_indptr"));
  const mask = golden.input("mask");
  const begins = golden.integers("mask_indptr");
  const qLens = Array.from(rows.kvLens, (_, s) => rows.queryIndptr[s + 1] - rows.queryIndptr[s]);
  const customMask = packVisible({ qLens, kvLens: rows.kvLens }, (s, i, t) => {
    return mask[begins[s] + i * rows.kvLens[s] + t] !== 0;
  });
  const call = readCall(golden);
  const results = await runCall(
    { ...call, spec: { ...call.spec, customMask: true }, batch: { ...rows, customMask } },
    target,
  );
  return { ...results, packed_mask: customMask.bits };
}

/** A block row is a sequence of R queries, whose pages of C keys are its blocks. */
export async function runBlockSparse(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const [numRows, numKeys, blockRows, blockCols] = ["M", "N", "R", "C"].map((name) => golden.requiredNumber(name));
  const indptr = golden.integers("indptr");
  const numSeqs = indptr.length - 1;
  const queryIndptr = Int32Array.from(indptr, (_, s) => s * blockRows);
  const kvLens = Int32Array.from({ length: numSeqs }, (_, s) => (indptr[s + 1] - indptr[s]) * blockCols);
  const batch = {
    numRows,
    numSeqs,
    queryIndptr,
    kvLens,
    blockTables: golden.integers("indices"),
    pageIndptr: indptr,
    maxPages: 0,
    numPages: numKeys / blockCols,
    allowUnseeing: true,
  };
  const paged = readCall(golden, blockCols);
  if (!golden.has("block_mask")) return { ...(await runCall({ ...paged, batch }, target)) };
  const mask = golden.input("block_mask");
  const customMask = packVisible({ qLens: kvLens.map(() => blockRows), kvLens }, (s, i, t) => {
    const block = indptr[s] + Math.floor(t / blockCols);
    return mask[(block * blockRows + i) * blockCols + (t % blockCols)] !== 0;
  });
  const call = { ...paged, spec: { ...paged.spec, customMask: true }, batch: { ...batch, customMask } };
  return { ...(await runCall(call, target)) };
}

/** Every key/value head has its own blocks, and so is a call of its own: one sequence under a mask. */
export async function runVariableBlockSparse(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readCall(golden);
  const { numQHeads, numKvHeads, headDim } = call.spec;
  const group = numQHeads / numKvHeads;
  const [numRows] = golden.shape("q");
  const [numKeys] = golden.shape("k");
  const [, numBlockRows, numBlockCols] = golden.shape("block_mask_map");
  const map = golden.input("block_mask_map");
  const out = new Float64Array(numRows * numQHeads * headDim);
  const lse = new Float64Array(numRows * numQHeads);
  for (let kvHead = 0; kvHead < numKvHeads; kvHead++) {
    const rowBlock = blockOf(golden.integers("block_row_sz").subarray(kvHead * numBlockRows), numRows);
    const colBlock = blockOf(golden.integers("block_col_sz").subarray(kvHead * numBlockCols), numKeys);
    const customMask = packVisible({ qLens: [numRows], kvLens: [numKeys] }, (_, i, t) => {
      return map[(kvHead * numBlockRows + rowBlock[i]) * numBlockCols + colBlock[t]] !== 0;
    });
    const spec = { ...call.spec, numQHeads: group, numKvHeads: 1, customMask: true };
    const strides = nhdStrides(spec);
    const heads = { from: kvHead, count: 1, of: numKvHeads, headDim };
    const results = await runCall(
      {
        ...call,
        spec,
        batch: { ...contiguousBatch(Int32Array.of(0, numRows), Int32Array.of(0, numKeys)), customMask },
        q: takeHeads(call.q, { from: kvHead * group, count: group, of: numQHeads, headDim }),
        kPages: takeHeads(call.kPages, heads),
        vPages: takeHeads(call.vPages, heads),
        kStrides: strides,
        vStrides: strides,
      },
      target,
    );
    putHeads(out, results.out, { from: kvHead * group, count: group, of: numQHeads, headDim });
    putHeads(lse, results.lse, { from: kvHead * group, count: group, of: numQHeads, headDim: 1 });
  }
  return { out, lse } satisfies AttentionResults & Outputs;
}

/** All but the batch, which is empty. Without a page size the rows are contiguous. */
function readCall(golden: GoldenCase, pageSize?: number): AttentionCall {
  const spec = {
    headDim: golden.requiredNumber("head_dim"),
    numQHeads: golden.requiredNumber("num_q_heads"),
    numKvHeads: golden.requiredNumber("num_kv_heads"),
    smScale: golden.requiredNumber("sm_scale"),
    pageSize,
    causal: false,
    returnLse: true,
  };
  const strides = nhdStrides(spec);
  return {
    spec,
    storage: golden.dtype("k"),
    batch: contiguousBatch(Int32Array.of(0), Int32Array.of(0)),
    q: golden.input("q"),
    kPages: golden.input("k"),
    vPages: golden.input("v"),
    kStrides: strides,
    vStrides: strides,
    vOffset: 0,
  };
}

/** The block that each row is in. */
function blockOf(sizes: Int32Array, numRows: number): Int32Array {
  const blocks = new Int32Array(numRows);
  for (let block = 0, begin = 0; begin < numRows; begin += sizes[block++]) {
    blocks.fill(block, begin, begin + sizes[block]);
  }
  return blocks;
}

/** Neighbouring heads of rows [rows, of, headDim]. */
interface HeadRange {
  readonly from: number;
  readonly count: number;
  readonly of: number;
  readonly headDim: number;
}

function takeHeads(rows: NumberArray, { from, count, of, headDim }: HeadRange): NumberArray {
  return rows.filter((_, i) => {
    const head = Math.floor(i / headDim) % of;
    return head >= from && head < from + count;
  });
}

function putHeads(rows: Float64Array, heads: ArrayLike<number>, { from, count, of, headDim }: HeadRange): void {
  const width = count * headDim;
  for (let i = 0; i < heads.length; i++) {
    rows[Math.floor(i / width) * of * headDim + from * headDim + (i % width)] = heads[i];
  }
}
