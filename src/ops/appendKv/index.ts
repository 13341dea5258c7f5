/** The append to the key/value cache: contract, reference, and the function that records it. */
export type { AppendKvArgs, AppendKvSpec } from "./contract.ts";
export { appendKvKernel, recordAppendKv } from "./cpu.ts";
export {
  type AttentionPages,
  attentionPages,
  checkSlotMapping,
  headRows,
  type KvPages,
  type ScalePages,
  type SlotRows,
} from "./pages.ts";
export { appendKv, appendRows, type RowsToStore, storedValue } from "./reference.ts";
