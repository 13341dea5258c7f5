/** Gated activations: contract, reference, and the function that records them. */
export { type Activation, type GatedActivationArgs, type GatedActivationSpec, splitGateUp } from "./contract.ts";
export { gatedActivationKernel, recordGatedActivation } from "./cpu.ts";
export { activations, gatedActivation } from "./reference.ts";
