/** Root-mean-square normalisation by its definition, in float64 on contiguous rows. */
import type { RmsNormSpec } from "./contract.ts";

/**
 * x: [rows, dim] (heads are rows here); weight: [dim]; residual, added if given: as x. Returns [rows, dim].
 */
export function rmsNorm(
  spec: Pick<RmsNormSpec, "dim" | "eps" | "weightOffset">,
  x: ArrayLike<number>,
  weight: ArrayLike<number>,
  residual?: ArrayLike<number>,
): Float64Array {
  const { dim, eps, weightOffset } = spec;
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += dim) {
    let squares = 0;
    for (let d = 0; d < dim; d++) squares += x[row + d] * x[row + d];
    const scale = 1 / Math.sqrt(squares / dim + eps);
    for (let d = 0; d < dim; d++) {
      out[row + d] = (residual?.[row + d] ?? 0) + x[row + d] * scale * (weight[d] + weightOffset);
    }
  }
  return out;
}
