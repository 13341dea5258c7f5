/**
 * Golden cases of attention over Palu's latents: packed latents out, the full outputs, and the fused output projection.
 * paluOnCpu.ts runs the attention on the CPU device; what follows from latents alone is arithmetic of the host.
 */
import {
  expandLatents,
  fuseOutputProjection,
  headUpProjections,
  type PaluSpec,
  paluKernelSpec,
} from "../src/attention/palu/index.ts";
import {
  type AttentionBatch,
  attentionReference,
  type LatentRanks,
  latentLayout,
  nhdStrides,
} from "../src/ops/attention/index.ts";
import { RopeTable } from "../src/ops/rope/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import type { NumberArray } from "./inputs.ts";
import { paluOnCpu } from "./paluOnCpu.ts";

/** One attention call of a case, ready for either target. */
export interface PaluCall {
  readonly spec: PaluSpec;
  readonly ranks: LatentRanks;
  readonly batch: AttentionBatch;
  readonly q: NumberArray;
  /** [pages, pageSize, sum of the ranks] */
  readonly kPages: NumberArray;
  readonly vPages: NumberArray;
  /** In the order of the kernels. */
  readonly upK: Float32Array;
  readonly keyBias?: NumberArray;
  readonly alibiSlopes?: NumberArray;
  /** cos and sin of every position. */
  readonly ropeTable?: Float32Array;
}

export type PaluOutputs = { readonly out: ArrayLike<number>; readonly lse: ArrayLike<number> };

type Outputs = Record<string, ArrayLike<number>>;

export async function runPaluAttention(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const call = readCall(golden);
  const { spec, ranks } = call;
  const { out, lse } = target.name === "cpu" ? await paluOnCpu(call, target.device) : onReference(call);
  const upV = headUpProjections(golden.input("u_v"), ranks.ranksV, spec);
  const vBias = golden.has("v_bias") ? golden.input("v_bias") : undefined;
  const full = expandLatents(out, upV, ranks.ranksV, spec, vBias);
  const outputs: Outputs = { out_latent: padToLargest(call, out), out: full, lse };
  if (!golden.has("o_proj")) return outputs;
  const fused = fuseOutputProjection(golden.input("o_proj"), upV, ranks.ranksV, spec, vBias);
  return { ...outputs, o_proj_fused: fused.weight, o_proj_bias: fused.bias, y: project(fused, out) };
}

function readCall(golden: GoldenCase): PaluCall {
  const heads = {
    numQHeads: golden.requiredNumber("num_q_heads"),
    numKvHeads: golden.requiredNumber("num_kv_heads"),
    headDim: golden.requiredNumber("head_dim"),
  };
  const theta = golden.number("rope_theta");
  if (theta !== undefined && golden.file.params.rope_style !== "neox")
    throw new Error("params.rope_style must be neox");
  const storage = golden.dtype("k_cache");
  if (storage !== "f32" && storage !== "bf16") throw new Error(`latents of type ${storage} are unknown`);
  const ranks = { ranksK: readRanks(golden, "ranks_k"), ranksV: readRanks(golden, "ranks_v") };
  const kvLens = golden.integers("kv_lens");
  const { headDim } = heads;
  const ropeSpec = { headDim, rotaryDim: headDim, style: "halves", scaling: { type: "default" } } as const;
  return {
    spec: {
      ...heads,
      maxRankK: Math.max(...ranks.ranksK),
      maxRankV: Math.max(...ranks.ranksV),
      pageSize: golden.requiredNumber("page_size"),
      storage,
      smScale: golden.requiredNumber("sm_scale"),
      causal: golden.file.params.causal === true,
      slidingWindow: golden.number("sliding_window"),
      rope: theta === undefined ? undefined : { style: "halves", dim: headDim },
      keyBias: golden.has("k_bias"),
      alibi: golden.has("alibi_slopes"),
      returnLse: true,
    },
    ranks,
    batch: {
      numRows: golden.shape("q")[0],
      numSeqs: kvLens.length,
      queryIndptr: golden.integers("cu_q_lens"),
      kvLens,
      blockTables: golden.integers("page_indices"),
      maxPages: golden.shape("page_indices")[1],
      numPages: golden.shape("k_cache")[0],
    },
    q: golden.input("q"),
    kPages: golden.input("k_cache"),
    vPages: golden.input("v_cache"),
    upK: headUpProjections(golden.input("u_k"), ranks.ranksK, heads),
    keyBias: golden.has("k_bias") ? golden.input("k_bias") : undefined,
    alibiSlopes: golden.has("alibi_slopes") ? golden.input("alibi_slopes") : undefined,
    ropeTable: theta === undefined ? undefined : new RopeTable({ ...ropeSpec, theta }).rows(Math.max(...kvLens)),
  };
}

function readRanks(golden: GoldenCase, name: string): readonly number[] {
  const ranks = golden.file.params[name];
  if (!Array.isArray(ranks)) throw new Error(`params.${name} must be a list`);
  return ranks.map(Number);
}

function onReference(call: PaluCall): PaluOutputs {
  const { spec, ranks, batch, upK, keyBias } = call;
  const layout = latentLayout(ranks, { ...spec, storage: "f32", valueStorage: "f32" });
  const strides = (row: number) => nhdStrides({ pageSize: spec.pageSize, numKvHeads: 1, headDim: row });
  return attentionReference(paluKernelSpec(spec), batch, {
    ...call,
    kStrides: strides(layout.keyRow),
    vStrides: strides(layout.valueRow),
    latent: { ...ranks, up: upK, bias: keyBias },
  });
}

/** Packed latents as the cases have them: [rows, query heads, largest rank], with zeros past the rank of a head. */
function padToLargest({ spec, ranks }: PaluCall, packed: ArrayLike<number>): Float64Array {
  const { numQHeads } = spec;
  const { ranksV } = ranks;
  const largest = Math.max(...ranksV);
  const rankOf = Array.from({ length: numQHeads }, (_, head) => ranksV[Math.floor((head * ranksV.length) / numQHeads)]);
  const outRow = rankOf.reduce((a, b) => a + b, 0);
  const padded = new Float64Array((packed.length / outRow) * numQHeads * largest);
  for (let from = 0, at = 0; from < packed.length; from += rankOf[at % numQHeads], at++) {
    for (let r = 0; r < rankOf[at % numQHeads]; r++) padded[at * largest + r] = packed[from + r];
  }
  return padded;
}

/** y = weight . latents + bias of every row. */
function project(
  { weight, bias, inFeatures }: ReturnType<typeof fuseOutputProjection>,
  latents: ArrayLike<number>,
): Float64Array {
  const y = new Float64Array((latents.length / inFeatures) * bias.length);
  for (let at = 0; at < y.length; at++) {
    const [row, feature] = [Math.floor(at / bias.length), at % bias.length];
    let sum = bias[feature];
    for (let i = 0; i < inFeatures; i++) sum += weight[feature * inFeatures + i] * latents[row * inFeatures + i];
    y[at] = sum;
  }
  return y;
}
