/**
 * Golden cases of attention over pages: the ragged op of JAX, one query a sequence as in vLLM, and JAX's ops with one and with several
 * queries a sequence. Each is read as one ragged call (attentionCall.ts).
 */
import type { AttentionBatch } from "../src/ops/attention/batch.ts";
import { combinedStrides, hndStrides, nhdStrides } from "../src/ops/attention/storage.ts";
import { type AttentionCall, type AttentionResults, runCall } from "./attentionCall.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";

type Outputs = Record<string, ArrayLike<number>>;

export async function runRaggedAttention(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readRagged(golden);
  const { out, lse } = await runCall(call, target);
  const { sinks } = call;
  if (!sinks) return { out, lse };
  // What one would merge with: the sink is a state without a value.
  const withSink = Array.from(lse, (value, at) => {
    const sink = sinks[at % call.spec.numQHeads];
    const max = Math.max(value, sink);
    return max + Math.log(Math.exp(value - max) + Math.exp(sink - max));
  });
  return { out, lse, lse_with_sink: withSink };
}

/** A case of both layouts has the same numbers read as [page][slot][head] and as [page][head][slot]. */
export async function runPagedDecode(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readDecode(golden);
  const nhd = await runCall(call, target);
  if (!("out_hnd" in golden.file.outputs)) return { ...nhd };
  const strides = hndStrides(call.spec);
  const hnd = await runCall({ ...call, kStrides: strides, vStrides: strides }, target);
  return { out_nhd: nhd.out, lse_nhd: nhd.lse, out_hnd: hnd.out, lse_hnd: hnd.lse };
}

export async function runSingleToken(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  return { ...(await runCall(readSingleToken(golden), target)) };
}

/** Queries are padded to a rectangle: the effective ones of each sequence make the ragged rows. */
export async function runMultipleQueries(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const { call, padded } = readMultipleQueries(golden);
  return { ...spread(call, padded, await runCall(call, target)) };
}

function readRagged(golden: GoldenCase): AttentionCall {
  const spec = { ...readSpec(golden), causal: golden.file.params.causal === true };
  const layout = golden.file.params.kv_layout;
  if (layout !== "combined" && layout !== "NHD") throw new Error("params.kv_layout must be combined or NHD");
  const isCombined = layout === "combined";
  if (isCombined && golden.file.params.head_map !== "grouped") throw new Error("params.head_map must be grouped");
  const [keys, values] = isCombined ? ["kv_pages", "kv_pages"] : ["k_cache", "v_cache"];
  const kPages = golden.input(keys);
  const kvLens = golden.integers("kv_lens");
  const strides = isCombined ? combinedStrides(spec) : nhdStrides(spec);
  return {
    spec,
    storage: golden.dtype(keys),
    batch: {
      numRows: golden.shape("q")[0],
      numSeqs: golden.has("num_seqs") ? golden.integers("num_seqs")[0] : kvLens.length,
      queryIndptr: golden.integers("cu_q_lens"),
      kvLens,
      blockTables: golden.integers("page_indices"),
      maxPages: golden.shape("page_indices")[1],
      numPages: golden.shape(keys)[0],
    },
    q: golden.input("q"),
    kPages,
    vPages: isCombined ? kPages : golden.input(values),
    kStrides: strides,
    vStrides: strides,
    vOffset: isCombined ? spec.headDim : 0,
    sinks: golden.has("sinks") ? golden.input("sinks") : undefined,
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
    rowScales: golden.has("k_scales")
      ? {
          k: golden.input("k_scales"),
          v: golden.input("v_scales"),
          strides: { page: pageSize, slot: 1, head: numPages * pageSize },
        }
      : undefined,
  };
}

/** Rows of the padded result, and which of them each ragged row is. */
interface PaddedRows {
  readonly numRows: number;
  readonly rowOf: readonly number[];
}

function readMultipleQueries(golden: GoldenCase): { readonly call: AttentionCall; readonly padded: PaddedRows } {
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
  return { call: { ...call, q, batch }, padded: { numRows: numSeqs * maxQueries, rowOf } };
}

/** Puts ragged rows where they belong; the others are zeros with lse -infinity. */
function spread(
  { spec }: AttentionCall,
  { numRows, rowOf }: PaddedRows,
  { out, lse }: AttentionResults,
): AttentionResults {
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
