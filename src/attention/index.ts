/**
 * `kvasir/attention`: ragged paged attention and what goes with it (rotary embedding, the append to the cache, page copies), recorded on
 * a CPU device over buffers that the caller owns. Only re-exports.
 */
export * from "../devices/index.ts";
export {
  type AppendKvArgs,
  type AppendKvSpec,
  appendKvKernel,
  checkSlotMapping,
  type KvPages,
  recordAppendKv,
} from "../ops/appendKv/index.ts";
export * from "../ops/attention/index.ts";
export { type CopyPagesArgs, type PageBuffer, recordCopyPages } from "../ops/copyPages/index.ts";
export type { Recorder } from "../ops/recorder.ts";
export * from "../ops/rope/index.ts";
