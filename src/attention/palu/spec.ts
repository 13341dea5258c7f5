/** What compiles Palu's attention, and the spec of the kernel that follows from it. Ranks of a layer are layer.ts's. */
import { type AttentionSpec, requireInteger, validateAttentionSpec } from "../../ops/attention/index.ts";
import { ArgumentError } from "../../tensor/index.ts";

/**
 * Attention over low-rank latents. One spec serves all layers of a model, whatever their ranks: the largest are part of it, the others
 * reach the kernel with the layer. smScale belongs to the full head dimension, as without Palu.
 */
export interface PaluSpec extends Omit<AttentionSpec, "mla" | "latent" | "headDimV"> {
  /** Channels of a full head, also with absorbed keys. */
  readonly headDim: number;
  /** The largest rank of any group's keys in any layer; ranks above headDim are no error (rounding makes them). */
  readonly maxRankK: number;
  /** The largest rank of any group's values in any layer. */
  readonly maxRankV: number;
  /**
   * "rebuilt" (default): keys are U_k times their latent, plus a bias, rotated at their absolute position. "absorbed": queries come multiplied
   * with U_k^T (`PaluLayer.recordAbsorb`) and meet the latents as they are: for models without rope and bias.
   */
  readonly keys?: "rebuilt" | "absorbed";
  /**
   * Head groups of every layer, for absorbed keys: all query heads of a group then share the loads of its latents, where otherwise only those of
   * a key/value head do. The result is the same.
   */
  readonly numGroups?: number;
  /**
   * Every group of every layer has exactly maxRankK and maxRankV, and there are numGroups of them: absorbed latents are then keys and values like
   * any others to the kernel, which reads them where they lie for a single new token.
   */
  readonly equalRanks?: boolean;
  /** The layers have a bias of the keys. */
  readonly keyBias?: boolean;
  /** The last tokens of a sequence lie in windows of this type, until they are quantised: see LatentWindows. */
  readonly recent?: "f32" | "f16";
}

/** The spec of the attention kernel. Throws ArgumentError for a spec that is out of range. */
export function paluKernelSpec(spec: PaluSpec): AttentionSpec {
  const { maxRankK, maxRankV, keys = "rebuilt", keyBias, recent, headDim, numGroups, equalRanks, ...shared } = spec;
  if (keys !== "rebuilt" && keys !== "absorbed") {
    throw new ArgumentError(`keys must be rebuilt or absorbed, got ${keys}`);
  }
  for (const name of ["mla", "latent", "headDimV"]) {
    if (name in spec)
      throw new ArgumentError(`${name} is not for Palu's attention: maxRankK, maxRankV and keys say it`);
  }
  if (numGroups !== undefined) {
    if (keys !== "absorbed") {
      throw new ArgumentError(
        `numGroups = ${numGroups} needs keys = absorbed: rebuilt keys differ between the heads of a group`,
      );
    }
    requireInteger("numGroups", numGroups, 1);
    if (spec.numKvHeads % numGroups !== 0) {
      throw new ArgumentError(`numGroups must divide numKvHeads = ${spec.numKvHeads}, got ${numGroups}`);
    }
  }
  const kernelSpec: AttentionSpec = {
    ...shared,
    // Absorbed queries of a group meet the same latents: to the kernel the group is the head.
    numKvHeads: numGroups ?? spec.numKvHeads,
    headDim: keys === "absorbed" ? maxRankK : headDim,
    headDimV: maxRankV,
    latent: { maxRankK, keys, bias: keyBias, recent },
  };
  validateAttentionSpec(kernelSpec);
  if (!equalRanks) return kernelSpec;
  if (numGroups === undefined) throw new ArgumentError("equalRanks needs numGroups, and keys = absorbed");
  if (recent) throw new ArgumentError(`equalRanks must be absent with recent = ${recent}: windows are for latents`);
  const { latent: _, ...plainSpec } = kernelSpec;
  return plainSpec;
}
