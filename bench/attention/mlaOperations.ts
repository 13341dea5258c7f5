/** What the two forms of latent attention compute in mla.ts's comparison. */

import type { MlaDims } from "../../src/attention/mla/index.ts";
import {
  type MlaShape,
  mlaAbsorbedOperations,
  mlaVanillaOperations,
  mlaWeights,
} from "../../src/ops/attention/index.ts";

/** Operations of what is run here: without the projections that both forms share. */
export function operationsOf(dims: MlaDims, form: "absorbed" | "vanilla", kvLen: number): number {
  // The hidden size only counts for projections that are taken off again.
  const shape: MlaShape = { ...dims, hiddenSize: 1 };
  const { query, queryRope, output } = mlaWeights(shape, "vanilla");
  const all = form === "absorbed" ? mlaAbsorbedOperations(shape, 1, kvLen) : mlaVanillaOperations(shape, 1, kvLen);
  return all - 2 * (query + queryRope + output);
}
