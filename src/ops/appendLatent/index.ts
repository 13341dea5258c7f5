/** The append of low-rank latents and the flush of their recent windows: contract, reference, and the functions that record them. */
export {
  type AppendLatentArgs,
  type AppendLatentSpec,
  checkFlushes,
  type FlushWindowArgs,
  type LatentPages,
  type RecentWindows,
  windowPages,
  windowSlot,
} from "./contract.ts";
export { recordAppendLatent, recordFlushWindow, storeLatentsKernel } from "./cpu.ts";
export { appendLatent, flushWindow, type LatentsToStore } from "./reference.ts";
