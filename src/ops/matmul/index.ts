/** Matrix products with quantised weights: contract, reference, and the functions that record them. */

export { type Arithmetic, activationBlock } from "./activations.ts";
export { type ActivationPrecision, arithmeticFor, type MatmulArgs, type WeightMatrix } from "./contract.ts";
export {
  ActivationWorkspace,
  allocateWeightMatrix,
  type PreparedActivations,
  recordMatmul,
  recordPackRows,
  rowsPerPanelGroup,
  type WeightMatrixOptions,
} from "./cpu.ts";
export { matmul, type ReferenceMatmul } from "./reference.ts";
