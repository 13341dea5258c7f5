/** Conditions between the fields of a ModelConfig that a file can violate although each field alone is sound. */

import { FormatError } from "../../tensor/index.ts";
import type { ModelConfig } from "./modelConfig.ts";

/** Throws FormatError naming the fields that do not fit together. */
export function requireConsistent(label: string, config: ModelConfig): void {
  const { numAttentionHeads, numKvHeads, vocabSize } = config;
  if (numAttentionHeads % numKvHeads !== 0) {
    throw new FormatError(
      `${label}: ${numAttentionHeads} attention heads are not a multiple of ${numKvHeads} key/value heads`,
    );
  }
  for (const id of [config.bosTokenId ?? 0, ...config.eosTokenIds]) {
    if (id >= vocabSize) throw new FormatError(`${label}: token id ${id} is outside of the vocabulary of ${vocabSize}`);
  }
}

/** Throws FormatError unless heads can be rotated: an even number of channels. */
export function requireHeadDim(label: string, headDim: number): void {
  if (!Number.isInteger(headDim) || headDim % 2 !== 0) {
    throw new FormatError(
      `${label}: heads have ${headDim} channels: an even integer is right (hidden size / attention heads, or stated)`,
    );
  }
}
