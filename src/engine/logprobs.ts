/** Log-probabilities of single tokens under one row of raw logits, and the most likely tokens of the row. */

import { LOWEST_EXPONENT, negativeExp } from "./exponential.ts";
import type { Logprobs, TokenLogprob } from "./types.ts";

/** Natural log of the sum of exp(logit), in float64. NaN when the row holds one, -Infinity when every logit is. */
export function logSumExp(row: Float32Array): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < row.length; i++) {
    if (row[i] <= largest) continue;
    if (Number.isNaN(row[i])) return Number.NaN;
    largest = row[i];
  }
  if (!Number.isFinite(largest)) return largest;
  let sum = 0;
  for (let i = 0; i < row.length; i++) {
    const exponent = row[i] - largest;
    if (exponent >= LOWEST_EXPONENT) sum += negativeExp(exponent);
  }
  return largest + Math.log(sum);
}

/**
 * The log-probability of `tokenId` and of the `numTop` most likely tokens (the larger first, then the lower token number).
 * `normaliser` is the row's `logSumExp`, where the device has computed it.
 */
export function logprobsOf(
  row: Float32Array,
  tokenId: number,
  numTop: number,
  normaliser: number = logSumExp(row),
): Logprobs {
  return { tokenId, logprob: row[tokenId] - normaliser, top: mostLikely(row, numTop, normaliser) };
}

function mostLikely(row: Float32Array, numTop: number, normaliser: number): TokenLogprob[] {
  const top: { tokenId: number; logprob: number }[] = [];
  if (numTop === 0) return top;
  let lowest = Number.NEGATIVE_INFINITY;
  for (let token = 0; token < row.length; token++) {
    if (top.length === numTop && !(row[token] > lowest)) continue;
    let at = top.length;
    while (at > 0 && top[at - 1].logprob < row[token]) at--;
    top.splice(at, 0, { tokenId: token, logprob: row[token] });
    if (top.length > numTop) top.pop();
    lowest = top[top.length - 1].logprob;
  }
  for (const entry of top) entry.logprob -= normaliser;
  return top;
}
