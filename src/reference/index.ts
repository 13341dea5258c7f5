/**
 * `kvasir/reference`: what every operation means, as plain loops in float64, to test other kernels against. Only re-exports.
 */
export { type AppendKvSpec, appendKv, storedValue } from "../ops/appendKv/index.ts";
export {
  type AttentionInputs,
  type AttentionOutputs,
  type AttentionSpec,
  attentionReference,
  type ReferenceSpec,
} from "../ops/attention/index.ts";
export { copyPages } from "../ops/copyPages/index.ts";
export { add, addBias, multiply, scale } from "../ops/elementwise/index.ts";
export { embedding } from "../ops/embedding/index.ts";
export { type Activation, activations, gatedActivation, splitGateUp } from "../ops/gatedActivation/index.ts";
export { type Candidate, type RowStatistics, rowStatistics, softCap, topCandidates } from "../ops/logits/index.ts";
export { matmul, type ReferenceMatmul } from "../ops/matmul/index.ts";
export { type RmsNormSpec, rmsNorm } from "../ops/rmsNorm/index.ts";
export {
  attentionFactor,
  inverseFrequencies,
  type RopeScaling,
  type RopeSpec,
  RopeTable,
  ropeReference,
} from "../ops/rope/index.ts";
export { dequantize } from "../tensor/index.ts";
