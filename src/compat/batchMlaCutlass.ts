/**
 * The form that BatchMLAPagedAttentionWrapper has for backend "cutlass": no plan before, but lengths and a page table at each run, for one
 * query a sequence, 128 heads and DeepSeek's dimensions and scale.
 */
import { mlaSoftmaxScale } from "../attention/index.ts";
import type { AttentionBatch } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import type { BatchMLARunOptions } from "./batchMlaOptions.ts";
import { requireInt32, requirePageTable } from "./int32Arrays.ts";
import { cacheType, type PlannedMlaSpec } from "./mlaPlan.ts";

const NUM_HEADS = 128;
const KV_LORA_RANK = 512;
const QK_ROPE_HEAD_DIM = 64;
const QK_NOPE_HEAD_DIM = 128;

/** Tokens that the original's kernel reads together: page tables are padded to a multiple of them. */
const BLOCK_TOKENS = 128;

/** The plan that a run's arguments come to. Throws ArgumentError or ShapeError naming what is missing or past the backend's limits. */
export function cutlassPlan(
  qNope: DeviceTensor,
  ckvCache: DeviceTensor,
  { kvLen, pageTable, returnLse, lse }: BatchMLARunOptions,
): { readonly spec: PlannedMlaSpec; readonly batch: AttentionBatch } {
  if (returnLse || lse) throw new ArgumentError(`${lse ? "lse" : "returnLse"} is not supported with backend cutlass`);
  if (!kvLen || !pageTable) {
    throw new ArgumentError(`${kvLen ? "pageTable" : "kvLen"} must be given with backend cutlass`);
  }
  const [numSeqs, numHeads, channels] = qNope.shape;
  const [numPages, pageSize, cacheChannels] = ckvCache.shape;
  if (numHeads !== NUM_HEADS) {
    throw new ArgumentError(`qNope must have ${NUM_HEADS} heads with backend cutlass, got ${numHeads}`);
  }
  if (channels !== KV_LORA_RANK || cacheChannels !== KV_LORA_RANK) {
    throw new ArgumentError(
      `qNope and ckvCache must have ${KV_LORA_RANK} channels with backend cutlass, got ${channels} and ${cacheChannels}`,
    );
  }
  requireInt32("kvLen", kvLen, numSeqs, ", the rows of qNope");
  requirePageTable("pageTable", pageTable);
  const [rows, maxPages] = pageTable.shape;
  if (rows !== numSeqs) {
    throw new ArgumentError(`pageTable must have a row for each of ${numSeqs} queries, got ${rows}`);
  }
  const pagesPerBlock = BLOCK_TOKENS / pageSize;
  if (maxPages % pagesPerBlock !== 0) {
    throw new ArgumentError(
      `pageTable must have a multiple of ${BLOCK_TOKENS} / pageSize = ${pagesPerBlock} columns, got ${maxPages}`,
    );
  }
  return {
    spec: {
      numHeads,
      kvLoraRank: KV_LORA_RANK,
      qkRopeHeadDim: QK_ROPE_HEAD_DIM,
      pageSize,
      causal: false,
      smScale: mlaSoftmaxScale(QK_NOPE_HEAD_DIM, QK_ROPE_HEAD_DIM),
      storage: cacheType("ckvCache.type", ckvCache.type),
    },
    batch: {
      numRows: numSeqs,
      numSeqs,
      queryIndptr: Int32Array.from({ length: numSeqs + 1 }, (_, s) => s),
      kvLens: kvLen,
      blockTables: pageTable.values,
      maxPages,
      numPages,
      allowUnseeing: true,
    },
  };
}
