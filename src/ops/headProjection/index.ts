/** Products of every head with its own matrix: contract, reference, and the function that records them. */
export { absorbManyKernel } from "./absorbMany.ts";
export type { HeadProjectionArgs, HeadProjectionSpec } from "./contract.ts";
export { absorbHeadsKernel, expandHeadsKernel, recordHeadProjection } from "./cpu.ts";
export { checkHeads, checkWrittenHeads, type HeadStrides, type HeadsTensor } from "./heads.ts";
export { headProjection } from "./reference.ts";
