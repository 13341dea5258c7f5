/**
 * Rotary frequencies and tables of cos and sin, computed in float64: angles in float32 are off by up to 4e-3 at position 65,536.
 * What the scalings mean is in contract.ts.
 */
import type { RopeScaling, RopeSpec } from "./contract.ts";
import { validateRopeSpec } from "./contract.ts";

/**
 * Radians per position, [rotaryDim / 2].
 *
 * @param seqLen Tokens of the sequence: decides between the factor lists of longrope and sets the base of dynamic scaling. All positions
 *   of a sequence use the same frequencies. Without it a sequence within the original context is assumed.
 */
export function inverseFrequencies(spec: RopeSpec, seqLen = 0): Float64Array {
  validateRopeSpec(spec);
  const { rotaryDim, theta, scaling } = spec;
  const frequencies = (base: number) =>
    Float64Array.from({ length: rotaryDim / 2 }, (_, i) => base ** ((-2 * i) / rotaryDim));
  const plain = frequencies(theta);
  switch (scaling.type) {
    case "default":
      return plain;
    case "linear":
      return plain.map((f) => f / scaling.factor);
    case "dynamic": {
      const length = Math.max(seqLen, scaling.maxPositionEmbeddings);
      const growth = (scaling.factor * length) / scaling.maxPositionEmbeddings - (scaling.factor - 1);
      return frequencies(theta * growth ** (rotaryDim / (rotaryDim - 2)));
    }
    case "llama3":
      return plain.map((f) => llama3Frequency(f, scaling));
    case "yarn":
      return yarnFrequencies(plain, spec, scaling);
    case "longrope": {
      const factors = seqLen > scaling.originalMaxPositionEmbeddings ? scaling.longFactors : scaling.shortFactors;
      return plain.map((f, i) => f / factors[i]);
    }
    case "factors":
      return plain.map((f, i) => f / scaling.factors[i]);
  }
}

/** What cos and sin are multiplied with. */
export function attentionFactor({ scaling }: RopeSpec): number {
  if (scaling.type === "longrope") {
    const { originalMaxPositionEmbeddings: original, maxPositionEmbeddings: max } = scaling;
    return (
      scaling.attentionFactor ?? (max <= original ? 1 : Math.sqrt(1 + Math.log(max / original) / Math.log(original)))
    );
  }
  if (scaling.type !== "yarn") return 1;
  if (scaling.attentionFactor !== undefined) return scaling.attentionFactor;
  const { mscale, mscaleAllDim } = scaling;
  const magnitude = (k: number) => (scaling.factor <= 1 ? 1 : 0.1 * k * Math.log(scaling.factor) + 1);
  return mscale && mscaleAllDim ? magnitude(mscale) / magnitude(mscaleAllDim) : magnitude(1);
}

function llama3Frequency(f: number, scaling: Extract<RopeScaling, { type: "llama3" }>): number {
  const { factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPositionEmbeddings: original } = scaling;
  const wavelength = (2 * Math.PI) / f;
  if (wavelength > original / low) return f / factor;
  if (wavelength < original / high) return f;
  const smooth = (original / wavelength - low) / (high - low);
  return ((1 - smooth) * f) / factor + smooth * f;
}

/** Fast pairs keep their frequency, slow ones are interpolated, with a ramp between the two borders. */
function yarnFrequencies(
  plain: Float64Array,
  spec: RopeSpec,
  scaling: Extract<RopeScaling, { type: "yarn" }>,
): Float64Array {
  const { rotaryDim, theta } = spec;
  const { betaFast = 32, betaSlow = 1, truncate = true, originalMaxPositionEmbeddings: original } = scaling;
  const border = (rotations: number) =>
    (rotaryDim * Math.log(original / (2 * Math.PI * rotations))) / (2 * Math.log(theta));
  const low = Math.max(0, truncate ? Math.floor(border(betaFast)) : border(betaFast));
  const high = Math.min(rotaryDim - 1, truncate ? Math.ceil(border(betaSlow)) : border(betaSlow));
  const width = high === low ? 0.001 : high - low;
  return plain.map((f, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / width));
    return f * (1 - ramp) + (f / scaling.factor) * ramp;
  });
}

/**
 * cos and sin of positions 0, 1, ... One position is a row of rotaryDim floats: rotaryDim / 2 times cos, then as many
 * times sin, the attention factor included.
 */
export class RopeTable {
  readonly spec: RopeSpec;
  readonly rowSize: number;
  readonly #frequencies: Float64Array;
  readonly #factor: number;

  /** @param seqLen see inverseFrequencies */
  constructor(spec: RopeSpec, seqLen = 0) {
    this.spec = spec;
    this.rowSize = spec.rotaryDim;
    this.#frequencies = inverseFrequencies(spec, seqLen);
    this.#factor = attentionFactor(spec);
  }

  /** The rows of positions 0 up to numPositions: [numPositions, rotaryDim]. */
  rows(numPositions: number): Float32Array {
    const rows = new Float32Array(numPositions * this.rowSize);
    this.write(rows, 0, numPositions);
    return rows;
  }

  /** Writes the rows of positions `begin` up to `end` to their places in a table that begins with position 0. */
  write(table: Float32Array, begin: number, end: number): void {
    const half = this.rowSize / 2;
    for (let position = begin; position < end; position++) {
      for (let i = 0; i < half; i++) {
        const angle = position * this.#frequencies[i];
        table[position * this.rowSize + i] = Math.cos(angle) * this.#factor;
        table[position * this.rowSize + half + i] = Math.sin(angle) * this.#factor;
      }
    }
  }
}
