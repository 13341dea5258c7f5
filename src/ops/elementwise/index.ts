/** Element-wise sums and products of rows: contract, reference, and the functions that record them. */
export type { AddBiasArgs, CombineRowsArgs, ElementwiseOperation, ElementwiseSpec, ScaleRowsArgs } from "./contract.ts";
export { elementwiseKernel, recordAdd, recordAddBias, recordMultiply, recordScale } from "./cpu.ts";
export { add, addBias, multiply, scale } from "./reference.ts";
export type { DeviceTensor, RowsTensor } from "./rows.ts";
