/** The dimensions of multi-head latent attention, and the factor on its logits. */
import { requireInteger } from "../../ops/attention/index.ts";
import { ArgumentError } from "../../tensor/index.ts";

/** Dimensions of an MLA layer, by the names of Hugging Face's configs (DeepSeek-V2, arXiv 2405.04434, table of section 2.1). */
export interface MlaDims {
  readonly numHeads: number;
  /** Channels of the cached latent `ckv` that all heads share: c. */
  readonly kvLoraRank: number;
  /** Rotated channels of a query and of the one cached key `kpe` that all heads share; 0 for layers without rope. */
  readonly qkRopeHeadDim: number;
  /** Channels of a query, and of a key rebuilt from the latent, that do not rotate. */
  readonly qkNopeHeadDim: number;
  /** Channels of a value rebuilt from the latent, and of an output head. */
  readonly vHeadDim: number;
}

/** Throws ArgumentError naming the dimension that is out of range. */
export function validateMlaDims(shape: MlaDims): void {
  for (const name of ["numHeads", "kvLoraRank", "qkNopeHeadDim", "vHeadDim"] as const)
    requireInteger(name, shape[name], 1);
  requireInteger("qkRopeHeadDim", shape.qkRopeHeadDim, 0);
}

/** Rows of `kv_b_proj`: for each head in turn qkNopeHeadDim rows of W_UK and vHeadDim rows of W_UV, kvLoraRank columns each. */
export function kvBProjRows({ numHeads, qkNopeHeadDim, vHeadDim }: MlaDims): number {
  return numHeads * (qkNopeHeadDim + vHeadDim);
}

/** What yarn does to the logits of DeepSeek's models: `mscale_all_dim` and `factor` of the config's rope scaling. */
export interface YarnMagnitude {
  readonly factor: number;
  readonly mscaleAllDim: number;
}

/**
 * The factor on the logits: (qkNopeHeadDim + qkRopeHeadDim)^-0.5, the dimensions of a query before anything is absorbed, times the square
 * of yarn's magnitude 0.1 mscaleAllDim ln(factor) + 1 where a model has one. Throws ArgumentError for dimensions that are none.
 */
export function mlaSoftmaxScale(qkNopeHeadDim: number, qkRopeHeadDim: number, yarn?: YarnMagnitude): number {
  requireInteger("qkNopeHeadDim", qkNopeHeadDim, 1);
  requireInteger("qkRopeHeadDim", qkRopeHeadDim, 0);
  const scale = (qkNopeHeadDim + qkRopeHeadDim) ** -0.5;
  if (yarn === undefined) return scale;
  const { factor, mscaleAllDim } = yarn;
  if (!(factor > 0 && factor < Infinity))
    throw new ArgumentError(`yarn.factor must be a positive number, got ${factor}`);
  if (!Number.isFinite(mscaleAllDim)) {
    throw new ArgumentError(`yarn.mscaleAllDim must be a finite number, got ${mscaleAllDim}`);
  }
  const magnitude = factor <= 1 ? 1 : 0.1 * mscaleAllDim * Math.log(factor) + 1;
  return scale * magnitude ** 2;
}
