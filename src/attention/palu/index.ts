/** Attention over Palu's low-rank latents. */
export {
  absorbQueries,
  expandLatents,
  type FusedOutputProjection,
  fuseOutputProjection,
  headUpProjections,
  type PaluHeads,
} from "./projections.ts";
export {
  type LatentRows,
  type PaluReferenceInputs,
  type PaluReferenceOutputs,
  type PaluReferenceSpec,
  pagedLatents,
  paluAttentionReference,
} from "./reference.ts";
