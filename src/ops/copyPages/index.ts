/** Copies of cache pages: contract, reference, and the function that records them. */
export type { CopyPagesArgs, PageBuffer } from "./contract.ts";
export { copyPagesKernel, recordCopyPages } from "./cpu.ts";
export { pageBuffers, type StoredPages } from "./pageBuffers.ts";
export { copyPages } from "./reference.ts";
