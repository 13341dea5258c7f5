/**
 * Token embedding: out[t] = table[tokenIds[t]] * scale. The table is a weight matrix [vocabulary, dim] in any stored type, often the
 * output matrix too; Gemma scales by sqrt(dim).
 */

import { ArgumentError } from "../../tensor/index.ts";
import type { WeightMatrix } from "../matmul/index.ts";

/** Device addresses of a lookup; out: f32 [numTokens, columns of the table]. */
export interface EmbeddingArgs {
  readonly table: WeightMatrix;
  /** i32 [numTokens], each below the table's rows: the caller checks, the kernel reads what it is told. */
  readonly tokenIds: number;
  /** f32 [numTokens, dim] */
  readonly out: number;
  readonly numTokens: number;
  /** Default 1. */
  readonly scale?: number;
}

/** Throws ArgumentError naming the argument that does not fit. */
export function checkEmbedding({ numTokens, scale = 1, tokenIds, out }: EmbeddingArgs): void {
  if (!Number.isInteger(numTokens) || numTokens < 0)
    throw new ArgumentError(`numTokens must be a whole number, got ${numTokens}`);
  if (!Number.isFinite(scale)) throw new ArgumentError(`scale must be finite, got ${scale}`);
  if (tokenIds === 0) throw new ArgumentError("tokenIds must be an address, got 0");
  if (out === 0) throw new ArgumentError("out must be an address, got 0");
}
