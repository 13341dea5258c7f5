/** The golden cases of single operations: which function runs which op. */
import { runMultipleQueries, runPagedDecode, runRaggedAttention, runSingleToken } from "./attention.ts";
import { runCascade, runMergeStates } from "./cascade.ts";
import { GoldenCase, type GoldenFamily, type GoldenTarget, isCaseFile } from "./case.ts";
import { runGqaForward } from "./gqaForward.ts";
import { runHadamard } from "./hadamard.ts";
import { runFp8Token, runMlaModule, runPagedMla, runRaggedPrefill, runSparseMla } from "./mla.ts";
import { runPaluAttention } from "./palu.ts";
import { runPaluDecompose, runPaluRankSearch } from "./paluConvert.ts";
import { runCast, runDequantize, runFp8Decode } from "./quant.ts";
import { runRope } from "./rope.ts";
import { runInt8Quantize, runLatentQuant } from "./storageCodec.ts";
import { runBlockSparse, runCustomMask, runVariableBlockSparse } from "./variants.ts";

type OpRunner = (golden: GoldenCase, target: GoldenTarget) => Promise<Readonly<Record<string, ArrayLike<number>>>>;

const runners: Readonly<Record<string, OpRunner>> = {
  ragged_paged_attention: runRaggedAttention,
  paged_decode: runPagedDecode,
  paged_attention: runSingleToken,
  multi_queries_paged_attention: runMultipleQueries,
  custom_mask_attention: runCustomMask,
  block_sparse_attention: runBlockSparse,
  variable_block_sparse_attention: runVariableBlockSparse,
  merge_states: runMergeStates,
  cascade_attention: runCascade,
  rope: runRope,
  hadamard: runHadamard,
  mla_paged_attention: runPagedMla,
  mla_sparse_decode: runSparseMla,
  mla_module: runMlaModule,
  mla_fp8_token: runFp8Token,
  ragged_prefill: runRaggedPrefill,
  palu_attention: runPaluAttention,
  palu_decompose: runPaluDecompose,
  palu_rank_search: runPaluRankSearch,
  gqa_attention_backward: runGqaForward,
  gguf_dequantize: runDequantize,
  cast_from_f32: runCast,
  fp8_decode: runFp8Decode,
  int8_quantize: runInt8Quantize,
  palu_latent_quant: runLatentQuant,
};

/** The operations whose cases can be run. */
export const goldenOps: readonly string[] = Object.keys(runners);

/** Operations of the host, whose runners look at no target. */
const hostOps: ReadonlySet<string> = new Set(["gguf_dequantize", "palu_decompose", "palu_rank_search"]);

/** Outputs that nothing computes yet: reported, and not judged. */
const notComputed: Readonly<Record<string, readonly string[]>> = {
  gqa_attention_backward: ["delta", "dq", "dk", "dv"],
};

export const opGoldens: GoldenFamily = {
  name: "ops",
  claims: (_path, json) => isCaseFile(json),
  isDeviceFree: (json) => isCaseFile(json) && hostOps.has(json.op),
  async run(path, json, target) {
    if (!isCaseFile(json)) throw new Error("not a case of an operation");
    const runner = runners[json.op];
    if (!runner) throw new Error(`unknown op ${json.op}; known are ${goldenOps.join(", ")}`);
    const golden = new GoldenCase(path, json);
    return golden.judge(await runner(golden, target), notComputed[json.op]);
  },
};
