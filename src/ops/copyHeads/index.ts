/** Copies of head vectors between layouts: contract, reference, and the function that records them. */
export type { CopyHeadsArgs, CopyHeadsSpec } from "./contract.ts";
export { copyHeadsKernel, recordCopyHeads } from "./cpu.ts";
export { copyHeads } from "./reference.ts";
