/** Merging attention states by its definition, in float64 on contiguous rows. */
import type { MergeStatesSpec } from "./contract.ts";

/** v: [rows, numHeads, headDim]; s: [rows, numHeads]. */
export interface AttentionState {
  readonly v: Float64Array;
  readonly s: Float64Array;
}

/** v: [rows, numStates, numHeads, headDim]; s: [rows, numStates, numHeads]. */
export function mergeStates(
  { numHeads, headDim, lseBase = "e" }: MergeStatesSpec,
  numStates: number,
  v: ArrayLike<number>,
  s: ArrayLike<number>,
): AttentionState {
  const unit = lseBase === "e" ? 1 : Math.LN2;
  const numRows = s.length / (numStates * numHeads);
  const merged = { v: new Float64Array(numRows * numHeads * headDim), s: new Float64Array(numRows * numHeads) };
  for (let at = 0; at < numRows * numHeads; at++) {
    const [row, head] = [Math.floor(at / numHeads), at % numHeads];
    const states = Array.from({ length: numStates }, (_, i) => (row * numStates + i) * numHeads + head);
    const held = states.filter((state) => Math.abs(s[state]) !== Infinity);
    const largest = held.reduce((max, state) => Math.max(max, s[state] * unit), -Infinity);
    const sum = held.reduce((total, state) => total + Math.exp(s[state] * unit - largest), 0);
    for (const state of held) {
      const weight = Math.exp(s[state] * unit - largest) / sum;
      for (let d = 0; d < headDim; d++) merged.v[at * headDim + d] += weight * v[state * headDim + d];
    }
    merged.s[at] = held.length === 0 ? -Infinity : (largest + Math.log(sum)) / unit;
  }
  return merged;
}

/** Two states of the same rows. */
export function mergeState(
  spec: MergeStatesSpec,
  a: { readonly v: ArrayLike<number>; readonly s: ArrayLike<number> },
  b: { readonly v: ArrayLike<number>; readonly s: ArrayLike<number> },
): AttentionState {
  const interleave = (x: ArrayLike<number>, y: ArrayLike<number>, rowLength: number): Float64Array =>
    Float64Array.from({ length: x.length + y.length }, (_, i) => {
      const row = Math.floor(i / (2 * rowLength));
      const from = Math.floor(i / rowLength) % 2 === 0 ? x : y;
      return from[row * rowLength + (i % rowLength)];
    });
  const v = interleave(a.v, b.v, spec.numHeads * spec.headDim);
  return mergeStates(spec, 2, v, interleave(a.s, b.s, spec.numHeads));
}

/** The rows of `state` where `mask` is not 0 (all without one), merged with those of `other`; the others as they are. */
export function mergeStateInPlace(
  spec: MergeStatesSpec,
  state: AttentionState,
  other: { readonly v: ArrayLike<number>; readonly s: ArrayLike<number> },
  mask?: ArrayLike<number>,
): void {
  const { numHeads, headDim } = spec;
  const merged = mergeState(spec, state, other);
  for (let at = 0; at < state.s.length; at++) {
    if (mask && mask[Math.floor(at / numHeads)] === 0) continue;
    state.s[at] = merged.s[at];
    state.v.set(merged.v.subarray(at * headDim, (at + 1) * headDim), at * headDim);
  }
}

/**
 * out / (1 + exp(sink - lse)) for each row and head: the share that a logit without a value takes of the softmax. Rows without keys become
 * zeros. out: [rows, numHeads, headDim]; lse: [rows, numHeads]; sinks: [numHeads], natural logits.
 */
export function applySinks(
  { numHeads, headDim, lseBase = "e" }: MergeStatesSpec,
  out: ArrayLike<number>,
  lse: ArrayLike<number>,
  sinks: ArrayLike<number>,
): Float64Array {
  const unit = lseBase === "e" ? 1 : Math.LN2;
  return Float64Array.from(out, (value, i) => {
    const at = Math.floor(i / headDim);
    if (Math.abs(lse[at]) === Infinity) return 0;
    return value / (1 + Math.exp(sinks[at % numHeads] - lse[at] * unit));
  });
}
