/**
 * Golden cases of attention over Palu's latents: packed latents out, the full outputs, and the fused output projection.
 * paluOnCpu.ts runs the attention on the CPU device; what follows from latents alone is arithmetic of the host.
 */
import {
  expandLatents,
  fuseOutputProjection,
  headUpProjections,
  type PaluReferenceInputs,
  type PaluReferenceSpec,
  pagedLatents,
  paluAttentionReference,
} from "../src/attention/palu/index.ts";
import type { AttentionBatch } from "../src/ops/attention/index.ts";
import { inverseFrequencies, type RopeSpec } from "../src/ops/rope/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import type { NumberArray } from "./inputs.ts";

/** One attention call of a case, ready for either target. */
export interface PaluCall {
  readonly spec: PaluReferenceSpec;
  readonly pageSize: number;
  /** Type of the pages in the case. */
  readonly storage: string;
  readonly batch: AttentionBatch;
  readonly q: NumberArray;
  /** [pages, pageSize, sum of the ranks] */
  readonly kPages: NumberArray;
  readonly vPages: NumberArray;
  /** In the order of the kernels. */
  readonly upK: Float32Array;
  readonly keyBias?: NumberArray;
  readonly alibiSlopes?: NumberArray;
  readonly ropeSpec?: RopeSpec;
}

type Outputs = Record<string, ArrayLike<number>>;

export async function runPaluAttention(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  if (target.name !== "reference") throw new Error("the cpu has no attention over latents yet");
  const call = readCall(golden);
  const { spec } = call;
  const { out, lse } = onReference(call);
  const upV = headUpProjections(golden.input("u_v"), spec.ranksV, spec);
  const vBias = golden.has("v_bias") ? golden.input("v_bias") : undefined;
  const full = expandLatents(out, upV, spec.ranksV, spec, vBias);
  const outputs: Outputs = { out_latent: padToLargest(spec, out), out: full, lse };
  if (!golden.has("o_proj")) return outputs;
  const fused = fuseOutputProjection(golden.input("o_proj"), upV, spec.ranksV, spec, vBias);
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
  const ranksK = readRanks(golden, "ranks_k");
  const kvLens = golden.integers("kv_lens");
  const queryIndptr = golden.integers("cu_q_lens");
  return {
    spec: {
      ...heads,
      ranksK,
      ranksV: readRanks(golden, "ranks_v"),
      smScale: golden.requiredNumber("sm_scale"),
      causal: golden.file.params.causal === true,
      slidingWindow: golden.number("sliding_window"),
      rope: theta === undefined ? undefined : { style: "halves", dim: heads.headDim },
    },
    pageSize: golden.requiredNumber("page_size"),
    storage: golden.dtype("k_cache"),
    batch: {
      numRows: golden.shape("q")[0],
      numSeqs: kvLens.length,
      queryIndptr,
      kvLens,
      blockTables: golden.integers("page_indices"),
      maxPages: golden.shape("page_indices")[1],
      numPages: golden.shape("k_cache")[0],
    },
    q: golden.input("q"),
    kPages: golden.input("k_cache"),
    vPages: golden.input("v_cache"),
    upK: headUpProjections(golden.input("u_k"), ranksK, heads),
    keyBias: golden.has("k_bias") ? golden.input("k_bias") : undefined,
    alibiSlopes: golden.has("alibi_slopes") ? golden.input("alibi_slopes") : undefined,
    ropeSpec:
      theta === undefined
        ? undefined
        : { headDim: heads.headDim, rotaryDim: heads.headDim, style: "halves", theta, scaling: { type: "default" } },
  };
}

function readRanks(golden: GoldenCase, name: string): readonly number[] {
  const ranks = golden.file.params[name];
  if (!Array.isArray(ranks)) throw new Error(`params.${name} must be a list`);
  return ranks.map(Number);
}

function onReference(call: PaluCall): ReturnType<typeof paluAttentionReference> {
  const { batch, pageSize, spec } = call;
  const rowLength = (ranks: readonly number[]): number => ranks.reduce((a, b) => a + b, 0);
  const inputs: PaluReferenceInputs = {
    ...call,
    keyLatents: pagedLatents(batch, pageSize, { values: call.kPages, rowLength: rowLength(spec.ranksK) }),
    valueLatents: pagedLatents(batch, pageSize, { values: call.vPages, rowLength: rowLength(spec.ranksV) }),
    ropeFrequencies: call.ropeSpec && inverseFrequencies(call.ropeSpec),
  };
  return paluAttentionReference(spec, batch, inputs);
}

/** Packed latents as the cases have them: [rows, query heads, largest rank], with zeros past the rank of a head. */
function padToLargest(spec: PaluReferenceSpec, packed: ArrayLike<number>): Float64Array {
  const { numQHeads, ranksV } = spec;
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
