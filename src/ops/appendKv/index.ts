/** The append to the key/value cache: contract, reference, and the function that records it. */
export { type AppendKvArgs, type AppendKvSpec, checkSlotMapping, type KvPages } from "./contract.ts";
export { appendKvKernel, recordAppendKv } from "./cpu.ts";
export { appendKv, storedValue } from "./reference.ts";
