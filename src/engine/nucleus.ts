/**
 * Which tokens a draw may choose from: min-p, top-k and top-p over one row of logits, exactly, in at most two passes over the row and
 * without sorting it. What is drawn from them is the sampler's affair.
 */

import { LOWEST_EXPONENT, negativeExp } from "./exponential.ts";
import type { SamplingParams } from "./types.ts";

/** The rows' working memory, made once for a vocabulary and shared by all samples. */
export class Nucleus {
  /** Number of candidates; they stand in the order of their token numbers. */
  length = 0;
  readonly tokenIds: Int32Array;
  /** exp((logit - largest) / temperature). */
  readonly weights: Float64Array;
  readonly #logits: Float32Array;
  /** Candidates as the top-p selection moves them about. */
  readonly #order: Int32Array;
  readonly #heap: Float32Array;

  constructor(vocabSize: number) {
    this.tokenIds = new Int32Array(vocabSize);
    this.weights = new Float64Array(vocabSize);
    this.#logits = new Float32Array(vocabSize);
    this.#order = new Int32Array(vocabSize);
    this.#heap = new Float32Array(vocabSize);
  }

  /**
   * Fills `tokenIds` and `weights` with the tokens that pass, and returns the sum of their weights.
   * `params.temperature` must be above 0. Returns NaN when the row holds a NaN or its largest logit is not finite.
   */
  select(row: Float32Array, params: SamplingParams): number {
    const { temperature, topK, topP, minP } = params;
    const hasTopK = topK > 0 && topK < row.length;
    // Pass 1: the largest logit, and the k-th largest.
    const lowest = hasTopK ? this.#kthLargest(row, topK) : Number.NEGATIVE_INFINITY;
    const largest = hasTopK ? maximum(this.#heap, topK) : maximum(row, row.length);
    if (!Number.isFinite(largest) || Number.isNaN(lowest)) return Number.NaN;

    // Pass 2: the candidates. Without top-k and min-p the nucleus is a share of the whole row's mass, but only tokens of some weight
    // can be in it: all tokens of weight at most (1 - topP) / vocabSize together have no more than the share that top-p drops.
    const isShareOfAll = !hasTopK && minP === 0;
    const lowestExponent = Math.max(LOWEST_EXPONENT, Math.log(minP) - 1e-6);
    const lowestWeight = isShareOfAll && topP < 1 ? (1 - topP) / row.length : minP;
    let ties = hasTopK ? topK - countAbove(this.#heap, topK, lowest) : 0;
    const inverse = 1 / temperature;
    const { tokenIds, weights } = this;
    const logits = this.#logits;
    let total = 0;
    let length = 0;
    for (let token = 0; token < row.length; token++) {
      const logit = row[token];
      const exponent = (logit - largest) * inverse;
      if (logit < lowest || exponent < lowestExponent) continue;
      if (hasTopK && logit === lowest && --ties < 0) continue;
      const weight = negativeExp(exponent);
      if (weight < lowestWeight) {
        if (isShareOfAll) total += weight;
        continue;
      }
      total += weight;
      tokenIds[length] = token;
      weights[length] = weight;
      logits[length] = logit;
      length++;
    }
    this.length = length;
    return topP < 1 ? this.#keepTopP(topP * total) : total;
  }

  /** The k-th largest logit by a heap of the k largest so far, its smallest on top; NaN when there is one. */
  #kthLargest(row: Float32Array, k: number): number {
    const heap = this.#heap;
    for (let i = 0; i < k; i++) {
      if (Number.isNaN(row[i])) return Number.NaN;
      heap[i] = row[i];
    }
    for (let i = (k >> 1) - 1; i >= 0; i--) siftDown(heap, i, k);
    for (let i = k; i < row.length; i++) {
      const logit = row[i];
      if (logit <= heap[0]) continue;
      if (Number.isNaN(logit)) return Number.NaN;
      heap[0] = logit;
      siftDown(heap, 0, k);
    }
    return heap[0];
  }

  /**
   * Keeps the fewest candidates, larger logits and then lower token numbers first, whose weights reach `target`; at least one.
   * A quickselect by weight: the part that holds the last one kept is split again and again.
   */
  #keepTopP(target: number): number {
    const order = this.#order;
    const logits = this.#logits;
    const { weights } = this;
    for (let i = 0; i < this.length; i++) order[i] = i;
    let begin = 0;
    let end = this.length;
    let weightAbove = 0;
    while (begin < end) {
      const pivot = medianOfThree(logits[order[begin]], logits[order[(begin + end) >> 1]], logits[order[end - 1]]);
      let firstEqual = begin;
      let firstBelow = end;
      let weightLarger = 0;
      let pivotWeight = 0;
      for (let i = begin; i < firstBelow; ) {
        const candidate = order[i];
        const logit = logits[candidate];
        if (logit > pivot) {
          weightLarger += weights[candidate];
          order[i++] = order[firstEqual];
          order[firstEqual++] = candidate;
        } else if (logit < pivot) {
          order[i] = order[--firstBelow];
          order[firstBelow] = candidate;
        } else {
          pivotWeight = weights[candidate];
          i++;
        }
      }
      const numEqual = firstBelow - firstEqual;
      const missing = target - weightAbove - weightLarger;
      if (missing <= 0 && firstEqual > begin) {
        end = firstEqual;
      } else if (missing <= numEqual * pivotWeight) {
        return this.#keepFrom(pivot, Math.max(1, Math.ceil(missing / pivotWeight)));
      } else {
        weightAbove += weightLarger + numEqual * pivotWeight;
        begin = firstBelow;
      }
    }
    // The sums above round differently from the target's: everything is kept.
    return this.#keepFrom(Number.NEGATIVE_INFINITY, 0);
  }

  /** Keeps the candidates with a larger logit than `lowest`, and the first `ties` of those that have just that. */
  #keepFrom(lowest: number, ties: number): number {
    const { tokenIds, weights } = this;
    let left = ties;
    let kept = 0;
    let total = 0;
    for (let i = 0; i < this.length; i++) {
      const logit = this.#logits[i];
      if (logit < lowest || (logit === lowest && --left < 0)) continue;
      tokenIds[kept] = tokenIds[i];
      weights[kept] = weights[i];
      total += weights[i];
      kept++;
    }
    this.length = kept;
    return total;
  }
}

/** NaN when there is one among the first `length`. */
function maximum(values: Float32Array, length: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < length; i++) {
    const value = values[i];
    if (value <= largest) continue;
    if (Number.isNaN(value)) return Number.NaN;
    largest = value;
  }
  return largest;
}

function countAbove(values: Float32Array, length: number, bound: number): number {
  let count = 0;
  for (let i = 0; i < length; i++) if (values[i] > bound) count++;
  return count;
}

function siftDown(heap: Float32Array, from: number, length: number): void {
  const value = heap[from];
  let at = from;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= length) break;
    if (child + 1 < length && heap[child + 1] < heap[child]) child++;
    if (heap[child] >= value) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = value;
}

function medianOfThree(a: number, b: number, c: number): number {
  return Math.max(Math.min(a, b), Math.min(Math.max(a, b), c));
}
