/** The definition of the rotary embedding: plain loops in float64, angles included. */
import type { RopeSpec } from "./contract.ts";
import { attentionFactor, inverseFrequencies } from "./tables.ts";

/**
 * Rotates x [rows, numHeads, headDim] by the position of each row. For a pair (a, b): a cos - b sin, b cos + a sin.
 *
 * @param seqLen see inverseFrequencies
 */
export function ropeReference(
  spec: RopeSpec,
  x: ArrayLike<number>,
  positions: ArrayLike<number>,
  numHeads: number,
  seqLen = 0,
): Float64Array {
  const { headDim, rotaryDim, style } = spec;
  const frequencies = inverseFrequencies(spec, seqLen);
  const factor = attentionFactor(spec);
  const y = Float64Array.from(x);
  for (let row = 0; row < positions.length; row++) {
    for (let i = 0; i < rotaryDim / 2; i++) {
      const angle = positions[row] * frequencies[i];
      const cos = Math.cos(angle) * factor;
      const sin = Math.sin(angle) * factor;
      for (let head = 0; head < numHeads; head++) {
        const base = (row * numHeads + head) * headDim;
        const a = base + (style === "halves" ? i : 2 * i);
        const b = base + (style === "halves" ? i + rotaryDim / 2 : 2 * i + 1);
        y[a] = x[a] * cos - x[b] * sin;
        y[b] = x[b] * cos + x[a] * sin;
      }
    }
  }
  return y;
}
