/**
 * `kvasir/attention`: ragged paged attention and what goes with it, recorded on a CPU device over buffers that the caller owns. Only
 * re-exports; docs/attention.md has whole programs.
 */

/** The device: buffers, lists of launches, threads. */
export * from "../devices/index.ts";
/** The append of new keys and values to their pages, by slot. */
export {
  type AppendKvArgs,
  type AppendKvSpec,
  type AttentionPages,
  attentionPages,
  checkSlotMapping,
  headRows,
  type KvPages,
  recordAppendKv,
  type ScalePages,
  type SlotRows,
} from "../ops/appendKv/index.ts";
/** The append of low-rank latents, to pages or to the windows of recent tokens, and the flush of those. */
export {
  type AppendLatentArgs,
  type AppendLatentSpec,
  checkFlushes,
  type FlushWindowArgs,
  type LatentPages,
  type RecentWindows,
  recordAppendLatent,
  recordFlushWindow,
  windowPages,
  windowSlot,
} from "../ops/appendLatent/index.ts";
/** The append of MLA's latents and rope keys, to pages of their own or side by side. */
export {
  type AppendMlaArgs,
  type AppendMlaSpec,
  type MlaTokenLayout,
  mlaTokenPages,
  recordAppendMla,
} from "../ops/appendMla/index.ts";
/** Attention: the contract and its checks, strides of the page layouts, the plan of a step, and the recording of a layer. */
export {
  type AttentionArgs,
  type AttentionBatch,
  type AttentionInputs,
  type AttentionOutputs,
  AttentionPlan,
  type AttentionSpec,
  absorbThreshold,
  attentionCost,
  attentionReference,
  batchLengths,
  type Cost,
  type CostSpec,
  CpuAttentionPlan,
  combinedStrides,
  decodeRows,
  defaultSplitSize,
  type ElementStorage,
  type EncodeOptions,
  encodeRows,
  type GroupedStorage,
  hndStrides,
  type KeyRopeSpec,
  type LatentArgs,
  type LatentInputs,
  type LatentLayout,
  type LatentRanks,
  type LatentSpec,
  latentAttentionCost,
  latentLayout,
  latentTokenBytes,
  type MlaCostForm,
  type MlaShape,
  type MlaWeights,
  mergeCost,
  mlaAbsorbedOperations,
  mlaElements,
  mlaMaterialisedOperations,
  mlaVanillaOperations,
  mlaWeights,
  nhdStrides,
  type PackedMask,
  type PageShape,
  type PageStorage,
  type PageStrides,
  type RecentTokens,
  type ReferenceSpec,
  recordAttention,
  rowElements,
  rowScales,
  type SequenceLengths,
  type StorageUnits,
  type StoredRows,
  storageBytes,
  type TiledStorage,
  tokenBytes,
  validateAttentionBatch,
  validateAttentionSpec,
  validateStorage,
  valueDim,
  visibleKeys,
  visiblePairs,
} from "../ops/attention/index.ts";
/** Updates of a cache by slices or by slots, and the slots of a step's new tokens from ragged lengths and page lists. */
export {
  checkSlices,
  getBatchIndicesPositions,
  getSeqLens,
  type KvCacheUpdateArgs,
  type KvCacheUpdateSpec,
  type ReshapeAndCacheArgs,
  recordKvCacheUpdate,
  recordReshapeAndCache,
  slotMappingOf,
  type TokenPlaces,
} from "../ops/cacheUpdate/index.ts";
/** Copies of whole pages, for copy-on-write: codes and scales. */
export {
  type CopyPagesArgs,
  type PageBuffer,
  pageBuffers,
  recordCopyPages,
  type StoredPages,
} from "../ops/copyPages/index.ts";
/** Arrays in device memory, and where an operation is recorded. */
export type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
/** Hadamard transforms: of rows, and folded into low-rank factors. */
export {
  CpuHadamard,
  foldHadamard,
  type HadamardArgs,
  type HadamardSpec,
  type LowRankFactors,
} from "../ops/hadamard/index.ts";
/** Heads of packed rows: what queries of latent attention are made of. */
export type { HeadsTensor } from "../ops/headProjection/index.ts";
/** Results over disjoint sets of keys become the result over all of them; attention sinks. */
export {
  type ApplySinksArgs,
  type MergeManyArgs,
  type MergeStateArgs,
  type MergeStateInPlaceArgs,
  type MergeStatesSpec,
  recordApplySinks,
  recordMergeState,
  recordMergeStateInPlace,
  recordMergeStates,
} from "../ops/mergeStates/index.ts";
export type { Recorder } from "../ops/recorder.ts";
/** Rotary embedding of queries and keys. */
export {
  attentionFactor,
  inverseFrequencies,
  type RopeArgs,
  type RopeScaling,
  type RopeSpec,
  RopeTable,
  recordRope,
  ropeReference,
} from "../ops/rope/index.ts";
export type { ElementType } from "../tensor/index.ts";
/** A cache's tensors as an append takes them. */
export { appendPages, type CachePagesSpec } from "./appendPages.ts";
/** Attention over tensors: plan once a step, run once a layer. */
export {
  BatchAttention,
  type BatchAttentionArgs,
  type BatchAttentionSpec,
  type PlanOptions,
} from "./batchAttention.ts";
/** Attention over block-sparse matrices. */
export {
  type BlockSparseArgs,
  BlockSparseAttention,
  type BlockSparseMatrix,
  type BlockSparseSpec,
} from "./blockSparse.ts";
/** Attention over shared prefixes, level by level. */
export { type CascadeSpec, MultiLevelCascadeAttention } from "./cascade.ts";
/** Tensors from arrays of the host, and back. */
export { createTensor, type OwnedTensor, readTensor, type TensorValues, writeTensor } from "./deviceTensors.ts";
/** Masks of single pairs, for `customMask`. */
export { type MaskLengths, packedIndptr, packMask, packVisible, treeMask, unpackMask } from "./masks.ts";
/** Multi-head latent attention. */
export {
  AbsorbedMla,
  type AbsorbedMlaArgs,
  type AbsorbedMlaSpec,
  absorbIntoOutput,
  absorbIntoQueries,
  BatchMLAPagedAttention,
  type BatchMlaArgs,
  type BatchMlaSpec,
  decodeFp8Tokens,
  encodeFp8Tokens,
  type Fp8TokenLayout,
  fp8TokenLayout,
  type MlaCacheSpec,
  type MlaCacheTensors,
  type MlaDims,
  type MlaQueries,
  type MlaSegment,
  type MlaStepForm,
  type MlaStorage,
  mlaAbsorbThreshold,
  mlaSoftmaxScale,
  SparseMla,
  type SparseMlaLists,
  type SparseMlaSpec,
  type YarnMagnitude,
} from "./mla/index.ts";
/** Attention over Palu's low-rank latents, their caches, layers and recent windows. */
export * from "./palu/index.ts";
export { type AttentionResult, freeResult, type ResultTensor, runRecorded } from "./results.ts";
/** A batch from a list of its sequences. */
export { type BatchSequence, batchOf } from "./sequences.ts";
export type { KvLayout, KvTensors, StridedTensor } from "./tensors.ts";
export {
  VariableBlockSparseAttention,
  type VariableBlockSparseSpec,
  type VariableBlocks,
} from "./variableBlockSparse.ts";
/** Sliding windows by the names of other projects. */
export { type NamedWindow, slidingWindowFrom } from "./windows.ts";
