/** Gathering rows: contract, reference, and the function that records it. */
export type { GatherRowsArgs } from "./contract.ts";
export { recordGatherRows } from "./cpu.ts";
export { gatherRows } from "./reference.ts";
