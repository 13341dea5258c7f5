/**
 * Golden cases of attention over pages: the ragged op of JAX, one query a sequence as in vLLM, and JAX's ops with one and with several
 * queries a sequence. Each is read as one ragged call; attentionOnCpu.ts runs it on the CPU device.
 */
import type { AttentionBatch } from "../src/ops/attention/batch.ts";
import type { AttentionSpec } from "../src/ops/attention/contract.ts";
import { attentionReference } from "../src/ops/attention/reference.ts";
import { combinedStrides, nhdStrides, type PageStrides } from "../src/ops/attention/storage.ts";
import { attentionOnCpu } from "./attentionOnCpu.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { type NumberArray, roundTo } from "./inputs.ts";

/** One attention call of a case, ready for either target. */
export interface AttentionCall {
  readonly spec: Omit<AttentionSpec, "storage">;
  /** Type of the pages in the case. */
  readonly storage: string;
  readonly batch: AttentionBatch;
  readonly q: NumberArray;
  /** Decoded numbers, before any scale. `vPages` is the same array as `kPages` in the combined layout. */
  readonly kPages: NumberArray;
  readonly vPages: NumberArray;
  readonly kStrides: PageStrides;
  readonly vStrides: PageStrides;
  readonly vOffset: number;
  readonly alibiSlopes?: NumberArray;
  readonly kScale?: number;
  readonly vScale?: number;
  /** The scaled keys and values are rounded to this type before use, as JAX's ragged reference does. */
  readonly scaledType?: string;
  /** [kv head][page][slot]: one factor for each stored row, JAX's int8 scheme. */
  readonly kRowScales?: NumberArray;
  readonly vRowScales?: NumberArray;
  /** Rows of the padded result, and which of them each ragged row is; undefined where they are the same. */
  readonly padded?: { readonly numRows: number; readonly rowOf: readonly number[] };
}

type Outputs = { readonly out: ArrayLike<number>; readonly lse: ArrayLike<number> };

export async function runAttention(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readers[golden.file.op](golden);
  const result = target.name === "cpu" ? await attentionOnCpu(call, target.device) : onReference(call);
  return call.padded ? spread(call, call.padded, result) : result;
}

const readers: Readonly<Record<string, (golden: GoldenCase) => AttentionCall>> = {
  ragged_paged_attention: readRagged,
  paged_decode: readDecode,
  paged_attention: readSingleToken,
  multi_queries_paged_attention: readMultipleQueries,
};

function readRagged(golden: GoldenCase): AttentionCall {
  const spec = { ...readSpec(golden), causal: golden.file.params.causal === true };
  if (golden.file.params.kv_layout !== "combined") throw new Error("params.kv_layout must be combined");
  if (golden.file.params.head_map !== "grouped") throw new Error("params.head_map must be grouped");
  const pages = golden.input("kv_pages");
  const kvLens = golden.integers("kv_lens");
  return {
    spec,
    storage: golden.dtype("kv_pages"),
    batch: {
      numRows: golden.shape("q")[0],
      numSeqs: golden.has("num_seqs") ? golden.integers("num_seqs")[0] : kvLens.length,
      queryIndptr: golden.integers("cu_q_lens"),
      kvLens,
      blockTables: golden.integers("page_indices"),
      maxPages: golden.shape("page_indices")[1],
      numPages: golden.shape("kv_pages")[0],
    },
    q: golden.input("q"),
    kPages: pages,
    vPages: pages,
    kStrides: combinedStrides(spec),
    vStrides: combinedStrides(spec),
    vOffset: spec.headDim,
    kScale: golden.number("k_scale"),
    vScale: golden.number("v_scale"),
    scaledType: golden.dtype("q"),
  };
}

function readDecode(golden: GoldenCase): AttentionCall {
  const spec = readSpec(golden);
  if (golden.file.params.kv_layout !== "NHD") throw new Error("params.kv_layout must be NHD");
  return {
    spec,
    storage: golden.dtype("k_cache"),
    batch: decodeBatch(golden, "kv_lens", golden.shape("k_cache")[0]),
    q: golden.input("q"),
    kPages: golden.input("k_cache"),
    vPages: golden.input("v_cache"),
    kStrides: nhdStrides(spec),
    vStrides: nhdStrides(spec),
    vOffset: 0,
    alibiSlopes: golden.has("alibi_slopes") ? golden.input("alibi_slopes") : undefined,
    kScale: golden.number("k_scale"),
    vScale: golden.number("v_scale"),
  };
}

/** JAX's layout puts the head before the page: a stride like any other. */
function readSingleToken(golden: GoldenCase): AttentionCall {
  const spec = readSpec(golden);
  const [, numPages, pageSize, headDim] = golden.shape("k_pages");
  const strides = { page: pageSize * headDim, slot: headDim, head: numPages * pageSize * headDim };
  return {
    spec,
    storage: golden.dtype("k_pages"),
    batch: decodeBatch(golden, "lengths", numPages),
    q: golden.input("q"),
    kPages: golden.input("k_pages"),
    vPages: golden.input("v_pages"),
    kStrides: strides,
    vStrides: strides,
    vOffset: 0,
    kRowScales: golden.has("k_scales") ? golden.input("k_scales") : undefined,
    vRowScales: golden.has("v_scales") ? golden.input("v_scales") : undefined,
  };
}

/** Queries are padded to a rectangle: the effective ones of each sequence make the ragged rows. */
function readMultipleQueries(golden: GoldenCase): AttentionCall {
  const call = readSingleToken(golden);
  const queryLens = golden.integers("effective_q_lens");
  const [numSeqs, maxQueries] = golden.shape("q");
  const rowOf = Array.from(queryLens, (queryLen, s) =>
    Array.from({ length: queryLen }, (_, i) => s * maxQueries + i),
  ).flat();
  const queryIndptr = new Int32Array(numSeqs + 1);
  for (let s = 0; s < numSeqs; s++) queryIndptr[s + 1] = queryIndptr[s] + queryLens[s];
  const rowSize = call.spec.numQHeads * call.spec.headDim;
  const q = new Float32Array(rowOf.length * rowSize);
  for (const [to, from] of rowOf.entries()) q.set(call.q.subarray(from * rowSize, (from + 1) * rowSize), to * rowSize);
  const batch = { ...call.batch, numRows: rowOf.length, queryIndptr, allowUnseeing: false };
  return { ...call, q, batch, padded: { numRows: numSeqs * maxQueries, rowOf } };
}

/** Puts ragged rows where they belong; the others are zeros with lse -infinity. */
function spread(
  { spec }: AttentionCall,
  { numRows, rowOf }: NonNullable<AttentionCall["padded"]>,
  { out, lse }: Outputs,
): Outputs {
  const rowSize = spec.numQHeads * spec.headDim;
  const allOut = new Float64Array(numRows * rowSize);
  const allLse = new Float64Array(numRows * spec.numQHeads).fill(-Infinity);
  for (const [from, to] of rowOf.entries()) {
    for (let i = 0; i < rowSize; i++) allOut[to * rowSize + i] = out[from * rowSize + i];
    for (let h = 0; h < spec.numQHeads; h++) allLse[to * spec.numQHeads + h] = lse[from * spec.numQHeads + h];
  }
  return { out: allOut, lse: allLse };
}

function readSpec(golden: GoldenCase): AttentionCall["spec"] {
  return {
    headDim: golden.requiredNumber("head_dim"),
    numQHeads: golden.requiredNumber("num_q_heads"),
    numKvHeads: golden.requiredNumber("num_kv_heads"),
    pageSize: golden.requiredNumber("page_size"),
    smScale: golden.requiredNumber("sm_scale"),
    slidingWindow: golden.number("sliding_window"),
    softCap: golden.number("soft_cap"),
    causal: true,
    returnLse: true,
  };
}

/** One query a sequence, also where a sequence has no keys. */
function decodeBatch(golden: GoldenCase, lengths: string, numPages: number): AttentionBatch {
  const kvLens = golden.integers(lengths);
  return {
    numRows: kvLens.length,
    numSeqs: kvLens.length,
    queryIndptr: Int32Array.from({ length: kvLens.length + 1 }, (_, i) => i),
    kvLens,
    blockTables: golden.integers("page_indices"),
    maxPages: golden.shape("page_indices")[1],
    numPages,
    allowUnseeing: true,
  };
}

function onReference(call: AttentionCall): Outputs {
  const { scaledType, kScale = 1, vScale = 1 } = call;
  const { headDim } = call.spec;
  let { kPages, vPages } = call;
  if (call.kRowScales && call.vRowScales) {
    kPages = scaleRows(kPages, call.kRowScales, headDim);
    vPages = scaleRows(vPages, call.vRowScales, headDim);
  }
  if (scaledType && (kScale !== 1 || vScale !== 1)) {
    kPages = Float64Array.from(kPages, (value) => roundTo(scaledType, value * kScale));
    vPages = Float64Array.from(vPages, (value) => roundTo(scaledType, value * vScale));
    return attentionReference(call.spec, call.batch, { ...call, kPages, vPages, kScale: 1, vScale: 1 });
  }
  return attentionReference(call.spec, call.batch, { ...call, kPages, vPages });
}

function scaleRows(values: NumberArray, scales: NumberArray, headDim: number): Float64Array {
  return Float64Array.from(values, (value, i) => (value * scales[Math.floor(i / headDim)]) / 127.5);
}
