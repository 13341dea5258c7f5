/** Attention over Palu's low-rank latents: layers, caches, the attention itself, and host arithmetic on its factors. */
export { appendLatentPages } from "./appendLatentPages.ts";
export { type BatchPaluArgs, BatchPaluAttention } from "./batchPaluAttention.ts";
export {
  type AllocatedLatentCache,
  allocateLatentCache,
  type LatentCache,
  type LatentStorage,
  type LatentTensors,
  latentCapacity,
} from "./cache.ts";
export {
  type LatentWindow,
  LatentWindows,
  type LatentWindowsSpec,
  type TokenRange,
  type WindowAppend,
  type WindowStep,
  type WindowStepSequence,
} from "./latentWindows.ts";
export { type PaluFactors, PaluLayer, type PaluLayerSpec } from "./layer.ts";
export {
  absorbQueries,
  expandLatents,
  type FusedOutputProjection,
  fuseOutputProjection,
  headUpProjections,
  type PaluHeads,
} from "./projections.ts";
export { type PaluSpec, paluKernelSpec } from "./spec.ts";
