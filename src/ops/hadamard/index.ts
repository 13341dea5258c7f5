/** The orthonormal Hadamard transform: contract, reference, matrices, folding into weights, and the recording on a device. */
export { hadamardBlocks, hadamardFactors, hadamardMatrix, hadamardSigns } from "./construction.ts";
export type { HadamardArgs, HadamardSpec } from "./contract.ts";
export { CpuHadamard, hadamardKernel } from "./cpu.ts";
export { foldHadamard, type LowRankFactors } from "./fold.ts";
export { hadamardTransform } from "./reference.ts";
