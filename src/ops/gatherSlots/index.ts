/** Rows of cached tokens by their slots: contract, reference, and the function that records them. */
export type { GatherSlotsArgs, GatherSlotsSpec } from "./contract.ts";
export { gatherSlotsKernel, recordGatherSlots } from "./cpu.ts";
export { gatherSlots } from "./reference.ts";
