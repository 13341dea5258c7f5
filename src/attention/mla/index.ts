/** Multi-head latent attention: decode and prefill over a latent cache, and what goes with it. */
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
  type SparseMlaShape,
  sparseMlaReference,
} from "./pagedReference.ts";
export { type MlaModuleOutputs, type MlaModuleSpec, type MlaModuleWeights, mlaModule } from "./reference.ts";
export { kvBProjRows, type MlaShape, mlaSoftmaxScale, validateMlaShape, type YarnMagnitude } from "./shape.ts";
export { absorbIntoOutput, absorbIntoQueries } from "./weights.ts";
