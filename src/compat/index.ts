/**
 * `kvasir/compat`: attention under the names, layouts, defaults and errors of other projects, as thin adapters over `kvasir/attention`.
 * Only re-exports. Integers (lengths, offsets, page tables) are host arrays here; everything else lies on the device.
 */

export { alibiSlopes } from "./alibiSlopes.ts";
export type { CompatOptions } from "./attendOnce.ts";
/** FlashInfer's latent attention: its first decode, and today's wrapper. */
export {
  type BatchDecodeMlaOptions,
  type BatchDecodeMlaPlanOptions,
  type BatchDecodeMlaRunOptions,
  BatchDecodeMlaWithPagedKVCacheWrapper,
} from "./batchDecodeMla.ts";
export { BatchMLAPagedAttentionWrapper } from "./batchMla.ts";
export type { BatchMLAOptions, BatchMLARunOptions } from "./batchMlaOptions.ts";
/** vLLM over Palu's latents: prefill after a cached context. */
export { type ContextAttentionArgs, contextAttentionFwd } from "./contextAttention.ts";
/** FlashInfer: batches over pages in compressed rows, and over contiguous rows. */
export {
  type BatchDecodePlanOptions,
  type BatchDecodeRunOptions,
  BatchDecodeWithPagedKVCacheWrapper,
} from "./flashinferDecode.ts";
export type {
  FlashInferPlanOptions,
  FlashInferRunOptions,
  PosEncodingMode,
} from "./flashinferOptions.ts";
export type { PagedKvCache } from "./flashinferPages.ts";
export {
  type BatchPrefillPlanOptions,
  BatchPrefillWithPagedKVCacheWrapper,
  BatchPrefillWithRaggedKVCacheWrapper,
} from "./flashinferPrefill.ts";
/** FlashMLA, dense and sparse. */
export { type FlashMlaResult, flashMlaWithKvcache } from "./flashMla.ts";
export type { FlashMlaOptions, SlotLists } from "./flashMlaCall.ts";
export { FlashMLASchedMeta, getMlaMetadata } from "./flashMlaMetadata.ts";
export type { PageTable } from "./int32Arrays.ts";
/** JAX and torch_xla: paged_attention with one query a sequence, and with several. */
export type { JaxPages, QuantizedPages } from "./jaxPages.ts";
export { type MultiQueriesPagedAttentionOptions, multiQueriesPagedAttention } from "./multiQueriesPagedAttention.ts";
export { type PagedAttentionOptions, pagedAttention } from "./pagedAttention.ts";
/** vLLM over Palu's latents: the two versions of decoding, the choice of one, and its cache layout. */
export {
  type BlocksparseArgs,
  type ForwardDecodeMlrdPaluArgs,
  forwardDecodeMlrdPalu,
  type PagedAttentionMlrdPaluArgs,
  type PagedAttentionMlrdPaluV2Args,
  pagedAttentionMlrdPaluV1,
  pagedAttentionMlrdPaluV2,
  usesPagedAttentionV1,
} from "./pagedAttentionMlrdPalu.ts";
export type { KvCacheDtype, PaluCacheArgs } from "./paluCache.ts";
/** JAX, torch_xla and tpu-inference: ragged_paged_attention. */
export {
  type RaggedPagedAttentionV1Options,
  type RaggedPagedAttentionV2Options,
  raggedPagedAttentionV1,
  raggedPagedAttentionV2,
} from "./raggedPagedAttention.ts";
export {
  type RaggedPagedAttentionV3Hd64Options,
  type RaggedPagedAttentionV3Options,
  type RaggedPagedAttentionV3Result,
  raggedPagedAttentionV3,
  raggedPagedAttentionV3Hd64,
} from "./raggedPagedAttentionV3.ts";
export type { BlockSizes, V3Tuning } from "./raggedV3Checks.ts";
export {
  type CacheElements,
  keyPagesFromVllm,
  keyPagesToVllm,
  type LatentBlocks,
  valuePagesFromVllm,
  valuePagesToVllm,
} from "./vllmLatentPages.ts";
