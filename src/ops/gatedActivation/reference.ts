/** Gated activations by their definitions, in float64 on contiguous rows. */
import type { Activation, GatedActivationSpec } from "./contract.ts";
import { normalCdf } from "./normalDistribution.ts";

/** The activation functions of one element. */
export const activations: Readonly<Record<Activation, (x: number) => number>> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  // (1 + tanh u) / 2 written as 1 / (1 + exp(-2u)), which does not cancel for negative u.
  geluTanh: (x) => x / (1 + Math.exp(-2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  geluErf: (x) => x * normalCdf(x),
  relu: (x) => Math.max(x, 0),
};

/** gate, up: [rows, n]. Returns [rows, n]. */
export function gatedActivation(
  spec: GatedActivationSpec,
  gate: ArrayLike<number>,
  up: ArrayLike<number>,
): Float64Array {
  const act = activations[spec.activation];
  return Float64Array.from(gate, (value, i) => act(value) * up[i]);
}
