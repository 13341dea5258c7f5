/** Rotary position embedding. */
export { type RopeScaling, type RopeSpec, validateRopeSpec } from "./contract.ts";
export { type RopeArgs, recordRope, ropeKernel } from "./cpu.ts";
export { ropeReference } from "./reference.ts";
export { attentionFactor, inverseFrequencies, RopeTable } from "./tables.ts";
