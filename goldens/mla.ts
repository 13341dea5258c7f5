/**
 * Golden cases of multi-head latent attention, on the reference: paged and sparse attention, whole layers, 8-bit rows; and prefill over
 * contiguous keys and values of two widths. mlaOnCpu.ts runs them on the CPU device.
 */
import {
  decodeFp8Tokens,
  encodeFp8Tokens,
  type MlaModuleSpec,
  type MlaModuleWeights,
  type MlaReferenceInputs,
  type MlaReferenceSpec,
  mlaModule,
  mlaReference,
  sparseMlaReference,
} from "../src/attention/mla/index.ts";
import { type AttentionBatch, type AttentionSpec, attentionReference } from "../src/ops/attention/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { fp8TokensOnCpu } from "./fp8TokensOnCpu.ts";
import type { NumberArray } from "./inputs.ts";
import { mlaOnCpu, moduleOnCpu, prefillOnCpu, sparseOnCpu } from "./mlaOnCpu.ts";
import { readFrequencies } from "./rope.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** One paged call of a case; a fused cache is given as it is, and in its two parts. */
export interface PagedMlaCall {
  readonly spec: MlaReferenceSpec;
  readonly batch: AttentionBatch;
  readonly inputs: MlaReferenceInputs;
  readonly fusedCache?: NumberArray;
}

export async function runPagedMla(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readPaged(golden);
  return target.name === "cpu"
    ? mlaOnCpu(call, target.device)
    : { ...mlaReference(call.spec, call.batch, call.inputs) };
}

function readPaged(golden: GoldenCase): PagedMlaCall {
  const { params } = golden.file;
  const shape = {
    numHeads: golden.requiredNumber("num_heads"),
    kvLoraRank: golden.requiredNumber("kv_lora_rank"),
    qkRopeHeadDim: golden.requiredNumber("qk_rope_head_dim"),
    qkNopeHeadDim: golden.requiredNumber("qk_nope_head_dim"),
    vHeadDim: golden.requiredNumber("v_head_dim"),
  };
  const { kvLoraRank, qkRopeHeadDim } = shape;
  const width = kvLoraRank + qkRopeHeadDim;
  const fusedCache = params.fused_cache === true ? golden.input("kv_cache") : undefined;
  const part = (from: number, to: number) => fusedCache?.filter((_, i) => i % width >= from && i % width < to);
  const optional = (name: string) => (golden.has(name) ? golden.input(name) : undefined);
  const cache = fusedCache ? "kv_cache" : "ckv_cache";
  const rope =
    params.rotated === true
      ? undefined
      : {
          headDim: qkRopeHeadDim,
          rotaryDim: qkRopeHeadDim,
          style: readStyle(params.rope_style),
          theta: golden.requiredNumber("rope_theta"),
          scaling: { type: "default" as const },
        };
  return {
    spec: {
      ...shape,
      rope,
      pageSize: golden.requiredNumber("page_size"),
      smScale: golden.requiredNumber("sm_scale"),
      causal: params.causal === true,
    },
    batch: {
      numRows: golden.shape("q_nope")[0],
      numSeqs: golden.shape("kv_lens")[0],
      queryIndptr: golden.integers("cu_q_lens"),
      kvLens: golden.integers("kv_lens"),
      blockTables: golden.integers("page_indices"),
      maxPages: golden.shape("page_indices")[1],
      numPages: golden.shape(cache)[0],
      // A sequence without keys still has a row in the cases of one query each.
      allowUnseeing: true,
    },
    inputs: {
      qNope: golden.input("q_nope"),
      qPe: optional("q_pe"),
      kvBProj: golden.input("kv_b_proj"),
      ckvCache: part(0, kvLoraRank) ?? golden.input("ckv_cache"),
      kpeCache: part(kvLoraRank, width) ?? optional("kpe_cache"),
    },
    fusedCache,
  };
}

function readStyle(style: unknown): "halves" | "interleaved" {
  if (style === "interleaved") return style;
  if (style === "neox") return "halves";
  throw new Error(`params.rope_style ${JSON.stringify(style)} is unknown`);
}

/** Prefill over contiguous keys and values: head dimensions of a rebuilt MLA key and value. */
export interface RaggedPrefillCall {
  readonly spec: Omit<AttentionSpec, "storage">;
  readonly batch: AttentionBatch;
  readonly q: NumberArray;
  readonly k: NumberArray;
  readonly v: NumberArray;
}

export async function runRaggedPrefill(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readPrefill(golden);
  if (target.name === "cpu") return prefillOnCpu(call, target.device);
  const { headDim, headDimV = headDim, numKvHeads } = call.spec;
  const strides = (width: number) => ({ page: numKvHeads * width, slot: numKvHeads * width, head: width });
  return {
    ...attentionReference(call.spec, call.batch, {
      q: call.q,
      kPages: call.k,
      vPages: call.v,
      kStrides: strides(headDim),
      vStrides: strides(headDimV),
    }),
  };
}

function readPrefill(golden: GoldenCase): RaggedPrefillCall {
  const queryIndptr = golden.integers("qo_indptr");
  const kvIndptr = golden.integers("kv_indptr");
  const numSeqs = queryIndptr.length - 1;
  return {
    spec: {
      numQHeads: golden.requiredNumber("num_q_heads"),
      numKvHeads: golden.requiredNumber("num_kv_heads"),
      headDim: golden.requiredNumber("head_dim_qk"),
      headDimV: golden.requiredNumber("head_dim_vo"),
      smScale: golden.requiredNumber("sm_scale"),
      causal: golden.file.params.causal === true,
      returnLse: true,
    },
    batch: {
      numRows: golden.shape("q")[0],
      numSeqs,
      queryIndptr,
      kvLens: Int32Array.from({ length: numSeqs }, (_, s) => kvIndptr[s + 1] - kvIndptr[s]),
      blockTables: kvIndptr.slice(0, numSeqs),
      maxPages: 1,
      numPages: golden.shape("k")[0],
    },
    q: golden.input("q"),
    k: golden.input("k"),
    v: golden.input("v"),
  };
}

/** Queries over lists of slots. */
export interface SparseMlaCall {
  readonly shape: Parameters<typeof sparseMlaReference>[0];
  readonly inputs: Parameters<typeof sparseMlaReference>[1];
  readonly numSlots: number;
}

export async function runSparseMla(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const [batch, queryLen, topk] = golden.shape("indices");
  // One length for each sequence: the same for all its queries.
  const lengths = golden.has("topk_length") ? golden.integers("topk_length") : new Int32Array(batch).fill(topk);
  const call: SparseMlaCall = {
    shape: {
      numHeads: golden.requiredNumber("num_heads"),
      kvLoraRank: golden.requiredNumber("kv_lora_rank"),
      qkRopeHeadDim: golden.requiredNumber("qk_rope_head_dim"),
      smScale: golden.requiredNumber("sm_scale"),
    },
    inputs: {
      q: golden.input("q"),
      kvCache: golden.input("kv_cache"),
      indices: golden.integers("indices"),
      topk,
      lengths: Int32Array.from({ length: batch * queryLen }, (_, row) => lengths[Math.floor(row / queryLen)]),
      sinks: golden.has("attn_sink") ? golden.input("attn_sink") : undefined,
    },
    numSlots: golden.shape("kv_cache")[0] * golden.requiredNumber("page_size"),
  };
  if (target.name === "cpu") return sparseOnCpu(call, target.device);
  const { z, lse } = sparseMlaReference(call.shape, call.inputs);
  return { out: z, lse };
}

export async function runMlaModule(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const spec = readModuleSpec(golden);
  const normWeight = (name: string) =>
    golden.input(`${name}.weight_minus_one`).map((value: number) => Math.fround(1 + value));
  const hasQLatent = golden.number("q_lora_rank") !== undefined;
  const weights: MlaModuleWeights = {
    qProj: golden.input(hasQLatent ? "q_a_proj.weight" : "q_proj.weight"),
    qLowRank: hasQLatent ? { norm: normWeight("q_a_layernorm"), qBProj: golden.input("q_b_proj.weight") } : undefined,
    kvAProj: golden.input("kv_a_proj_with_mqa.weight"),
    kvNorm: normWeight("kv_a_layernorm"),
    kvBProj: golden.input("kv_b_proj.weight"),
    oProj: golden.input("o_proj.weight"),
  };
  const hidden = golden.input("hidden_states");
  const positions = golden.integers("positions");
  if (target.name === "cpu") return moduleOnCpu(spec, weights, hidden, positions, target.device);
  const { y, lse, ckv, kpe } = mlaModule(spec, weights, hidden, positions);
  return { y, lse, ckv_cache: ckv, kpe_cache: kpe };
}

function readModuleSpec(golden: GoldenCase): MlaModuleSpec {
  const qkRopeHeadDim = golden.requiredNumber("qk_rope_head_dim");
  return {
    hiddenSize: golden.requiredNumber("hidden"),
    numHeads: golden.requiredNumber("num_heads"),
    kvLoraRank: golden.requiredNumber("kv_lora_rank"),
    qkRopeHeadDim,
    qkNopeHeadDim: golden.requiredNumber("qk_nope_head_dim"),
    vHeadDim: golden.requiredNumber("v_head_dim"),
    smScale: golden.requiredNumber("sm_scale"),
    normEps: golden.requiredNumber("rms_norm_eps"),
    seqLen: golden.number("seq_len"),
    rope: {
      headDim: qkRopeHeadDim,
      rotaryDim: qkRopeHeadDim,
      style: readStyle(golden.file.params.rope_style),
      ...readFrequencies(golden),
    },
  };
}

/** By the codec of the host, and by the append and the gather of a device. */
export async function runFp8Token(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const shape = {
    kvLoraRank: golden.requiredNumber("kv_lora_rank"),
    qkRopeHeadDim: golden.requiredNumber("qk_rope_head_dim"),
  };
  if (target.name === "cpu") return fp8TokensOnCpu(shape, golden.input("kv"), target.device);
  const bytes = encodeFp8Tokens(shape, golden.input("kv"));
  return { bytes, decoded: decodeFp8Tokens(shape, bytes) };
}
