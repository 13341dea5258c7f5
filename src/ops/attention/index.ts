/** Ragged paged attention. */
export * from "./contract.ts";
export { attentionKernel, attentionMergeKernel } from "./cpu.ts";
export { AttentionPlan, keyBlock, queryTile } from "./plan.ts";
export { type AttentionArgs, CpuAttentionPlan, recordAttention } from "./record.ts";
export { type AttentionInputs, type AttentionOutputs, attentionReference, type ReferenceSpec } from "./reference.ts";
