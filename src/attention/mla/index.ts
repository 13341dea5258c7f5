/** Multi-head latent attention: decode and prefill over a latent cache, and what goes with it. */
export {
  AbsorbedMla,
  type AbsorbedMlaArgs,
  type AbsorbedMlaSpec,
  type MlaQueries,
} from "./absorbed.ts";
export {
  BatchMLAPagedAttention,
  type BatchMlaArgs,
  type BatchMlaSpec,
  mlaAbsorbThreshold,
} from "./batchMla.ts";
export type { MlaCacheSpec, MlaCacheTensors, MlaStorage } from "./cache.ts";
export { kvBProjRows, type MlaDims, mlaSoftmaxScale, validateMlaDims, type YarnMagnitude } from "./dims.ts";
export {
  decodeFp8Tokens,
  encodeFp8Tokens,
  type Fp8TokenLayout,
  fp8LatentStorage,
  fp8TokenLayout,
} from "./fp8Token.ts";
export {
  type MlaReferenceInputs,
  type MlaReferenceOutputs,
  type MlaReferenceSpec,
  mlaReference,
  type SparseMlaDims,
  sparseMlaReference,
} from "./pagedReference.ts";
export { type MlaModuleOutputs, type MlaModuleSpec, type MlaModuleWeights, mlaModule } from "./reference.ts";
export type { MlaSegment, MlaStepForm } from "./segments.ts";
export { SparseMla, type SparseMlaLists, type SparseMlaSpec } from "./sparse.ts";
export { absorbIntoOutput, absorbIntoQueries } from "./weights.ts";
