/** Merging attention states and applying sinks: contract, reference, and the functions that record them. */
export type {
  ApplySinksArgs,
  MergeManyArgs,
  MergeStateArgs,
  MergeStateInPlaceArgs,
  MergeStatesSpec,
} from "./contract.ts";
export {
  applySinksKernel,
  mergeStatesKernel,
  recordApplySinks,
  recordMergeState,
  recordMergeStateInPlace,
  recordMergeStates,
} from "./cpu.ts";
export { type AttentionState, applySinks, mergeState, mergeStateInPlace, mergeStates } from "./reference.ts";
