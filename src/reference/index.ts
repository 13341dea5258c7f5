/**
 * `kvasir/reference`: what every operation means, as plain loops in float64, to test other kernels against. Only re-exports; each
 * function's own docstring has the shapes.
 */

/** Multi-head latent attention: whole layers without absorption, and attention over paged latents or lists of them. */
export {
  type MlaModuleOutputs,
  type MlaModuleSpec,
  type MlaModuleWeights,
  type MlaReferenceInputs,
  type MlaReferenceOutputs,
  type MlaReferenceSpec,
  mlaModule,
  mlaReference,
  type SparseMlaDims,
  sparseMlaReference,
} from "../attention/mla/index.ts";
/** Keys or values of new tokens to their slots; and what a page of a storage type holds of an f32 value. */
export { type AppendKvSpec, appendKv, appendRows, type RowsToStore, storedValue } from "../ops/appendKv/index.ts";
/** Low-rank latents of new tokens to their slots, and from the windows of recent tokens to pages, bit for bit. */
export { appendLatent, flushWindow, type LatentsToStore } from "../ops/appendLatent/index.ts";
/** Latents and rope keys of MLA to their slots, bit for bit. */
export { type AppendMlaSpec, appendMla } from "../ops/appendMla/index.ts";
/**
 * Ragged attention over pages or rows, MLA and latents, with the LSE of each row; the page layouts that its strides describe; and what rows
 * of every storage type hold.
 */
export {
  type AttentionBatch,
  type AttentionInputs,
  type AttentionOutputs,
  type AttentionSpec,
  attentionReference,
  combinedStrides,
  decodeRows,
  type EncodeOptions,
  encodeRows,
  hndStrides,
  type LatentInputs,
  type LatentRanks,
  nhdStrides,
  type PageStorage,
  type PageStrides,
  type ReferenceSpec,
  type StoredRows,
} from "../ops/attention/index.ts";
/** Slices of new rows to a cache, bit for bit. */
export { type KvCacheUpdateSpec, kvCacheUpdate } from "../ops/cacheUpdate/index.ts";
/** Products of every head with its own matrix, rows of cached tokens by slot, and copies of heads between layouts. */
export { copyHeads } from "../ops/copyHeads/index.ts";
/** Copies of whole cache pages, in order. */
export { copyPages } from "../ops/copyPages/index.ts";
/** Sums and products of rows, element by element. */
export { add, addBias, multiply, scale } from "../ops/elementwise/index.ts";
/** Rows of a table by token id. */
export { embedding } from "../ops/embedding/index.ts";
/** activation(gate) * up, and the activation functions themselves. */
export {
  type Activation,
  activations,
  type GatedActivationSpec,
  gatedActivation,
} from "../ops/gatedActivation/index.ts";
/** Rows of a matrix by index. */
export { gatherRows } from "../ops/gatherRows/index.ts";
export { gatherSlots } from "../ops/gatherSlots/index.ts";
/** The orthonormal Hadamard transform of rows, and its matrix for any size. */
export { hadamardMatrix, hadamardTransform } from "../ops/hadamard/index.ts";
export { type HeadProjectionSpec, headProjection } from "../ops/headProjection/index.ts";
/** Soft cap; largest logit, where it is, and log-sum-exp of a row; a row's largest logits in order. */
export { type Candidate, type RowStatistics, rowStatistics, softCap, topCandidates } from "../ops/logits/index.ts";
/** Matrix products with weights [out features, in features]. */
export { matmul, type ReferenceMatmul } from "../ops/matmul/index.ts";
/** Attention states: merged over their keys, by their LSE; and the share that sinks take. */
export {
  type AttentionState,
  applySinks,
  type MergeStatesSpec,
  mergeState,
  mergeStateInPlace,
  mergeStates,
} from "../ops/mergeStates/index.ts";
/** Root-mean-square normalisation, with both weight conventions. */
export { type RmsNormSpec, rmsNorm } from "../ops/rmsNorm/index.ts";
/** Rotary embedding: the rotation, its frequencies under every scaling, and cos and sin by position. */
export {
  attentionFactor,
  inverseFrequencies,
  type RopeScaling,
  type RopeSpec,
  RopeTable,
  ropeReference,
} from "../ops/rope/index.ts";
/** The weights in the blocks of a model file, for every stored type. */
export { dequantize, type WeightType } from "../tensor/index.ts";
/** What a test of a kernel against all this asserts. */
export { largestDifference } from "./largestDifference.ts";
