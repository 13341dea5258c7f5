/** Root-mean-square normalisation: contract, reference, and the function that records it. */
export type { RmsNormArgs, RmsNormSpec } from "./contract.ts";
export { recordRmsNorm, rmsNormKernel } from "./cpu.ts";
export { rmsNorm } from "./reference.ts";
