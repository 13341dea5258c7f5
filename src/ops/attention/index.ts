/** Attention over keys and values in pages or contiguous rows. */
export * from "./batch.ts";
export * from "./contract.ts";
export * from "./costs.ts";
export { attentionKernel, attentionMergeKernel } from "./cpu.ts";
export * from "./latent.ts";
export * from "./mlaCosts.ts";
export { AttentionPlan, keyBlock, queryTile } from "./plan.ts";
export { type AttentionArgs, CpuAttentionPlan, type LatentArgs, recordAttention } from "./record.ts";
export { type AttentionOutputs, attentionReference, type ReferenceSpec } from "./reference.ts";
export type { AttentionInputs, LatentInputs } from "./referenceTokens.ts";
export * from "./storage.ts";
export { decodeRows, type EncodeOptions, encodeRows, type StorageUnits, type StoredRows } from "./storageCodec.ts";
