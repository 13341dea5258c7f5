/**
 * Kernel parts: the softmax of attention over one block of keys after another, the sum of chunks, and the end of a row. Logits are in
 * powers of two (the factor log2 e is part of the query's scale). Masked logits are true infinities: a row without any key has the largest
 * logit -infinity and the sum 0, and every difference of two infinities is guarded.
 */
import { exp2, type KernelBuilder, log, scalar, tanh, type Value } from "../../kernels/index.ts";
import { keyBlock } from "./plan.ts";

type Address = Value<"i32">;

/** State of one query row in scratch: largest logit, sum and rescaling factor of the current chunk; largest logit and sum of all chunks. */
export const rowState = { largest: 0, sum: 4, alpha: 8, totalLargest: 12, totalSum: 16, numBytes: 32 } as const;

export function initRowState(k: KernelBuilder, state: Address): void {
  resetChunk(k, state);
  k.store("f32", state, -Infinity, rowState.totalLargest);
  k.store("f32", state, 0, rowState.totalSum);
}

function resetChunk(k: KernelBuilder, state: Address): void {
  k.store("f32", state, -Infinity, rowState.largest);
  k.store("f32", state, 0, rowState.sum);
}

/** What to subtract from logits whose largest is `largest`: 0 where there is none, so that no infinity meets another. */
function safe(k: KernelBuilder, largest: Value<"f32">): Value<"f32"> {
  return k.let(k.select(largest.eq(-Infinity), k.f32(0), largest));
}

/** What becomes of a score before the softmax, and which keys of the block the row sees. */
export interface LogitsTransform {
  /** The scores are the logits divided by the cap if there is one; tanh comes first, and then the factor cap log2 e. */
  readonly softCap?: number;
  /** Adds slope * (j - ownKey) to the score of key j; the slope in the units of the scores. */
  readonly bias?: { readonly slope: Value<"f32">; readonly ownKey: Value<"i32"> };
  /** Keys outside [begin, end), counted from the block's start, weigh exactly 0. Looked at only where `needed` is not 0. */
  readonly mask: { readonly needed: Value<"i32">; readonly begin: Value<"i32">; readonly end: Value<"i32"> };
}

/**
 * Turns the scores of one row into weights 2^(logit - largest), moves the largest logit and the sum on, and leaves in `alpha` what the
 * sums of earlier blocks have to be multiplied with. A block without any visible key changes nothing.
 */
export function softmaxRow(
  k: KernelBuilder,
  { softCap, bias, mask }: LogitsTransform,
  scores: Address,
  state: Address,
): void {
  const largest = k.var("f32v", -Infinity);
  const slope = bias && k.let(k.splat(bias.slope));
  const ownKey = bias && k.let(k.splat(bias.ownKey));
  const scan = (isMasked: boolean): void => {
    const begin = isMasked ? k.let(k.splat(mask.begin)) : undefined;
    const end = isMasked ? k.let(k.splat(mask.end)) : undefined;
    for (let j = 0; j < keyBlock; j += k.lanes) {
      let logits = k.let(k.load("f32v", scores, j * 4));
      if (slope && ownKey) logits = k.let(k.laneIndices().add(j).sub(ownKey).toF32().fma(slope, logits));
      if (softCap !== undefined) logits = k.let(tanh(k, logits).mul(softCap * Math.LOG2E));
      if (begin && end) {
        const key = k.let(k.laneIndices().add(j));
        logits = k.let(k.select(key.ge(begin).and(key.lt(end)), logits, -Infinity));
      }
      if (softCap !== undefined || bias || isMasked) k.store("f32v", scores, logits, j * 4);
      largest.set(largest.value.max(logits));
    }
  };
  k.if(
    mask.needed,
    () => scan(true),
    () => scan(false),
  );
  const before = k.let(k.load("f32", state, rowState.largest));
  const after = k.let(before.max(k.maxLanes(largest.value)));
  const offset = safe(k, after);
  // 2^0 is exactly 1, so leaving it out changes no bit.
  const alpha = k.var("f32", 1);
  k.if(after.ne(before), () => alpha.set(scalar(k, exp2, before.sub(offset))));
  const offsets = k.let(k.splat(offset));
  const sum = k.var("f32v", 0);
  for (let j = 0; j < keyBlock; j += k.lanes) {
    const weights = exp2(k, k.load("f32v", scores, j * 4).sub(offsets));
    k.store("f32v", scores, weights, j * 4);
    sum.set(sum.value.add(weights));
  }
  k.store("f32", state, after, rowState.largest);
  k.store("f32", state, alpha.value, rowState.alpha);
  k.store("f32", state, k.load("f32", state, rowState.sum).mul(alpha.value).add(k.sumLanes(sum.value)), rowState.sum);
}

/** A weighted sum of values with its largest logit and its sum of weights. */
export interface Partial {
  readonly acc: Address;
  readonly largest: Value<"f32">;
  readonly sum: Value<"f32">;
}

/**
 * Adds the partial result of the next chunk to the total of a row: total.acc [headDim], and totalLargest and totalSum of its state. The
 * first chunk arrives unchanged to the bit, and an empty chunk changes nothing.
 */
export function foldChunk(k: KernelBuilder, headDim: number, total: Address, state: Address, chunk: Partial): void {
  const before = k.let(k.load("f32", state, rowState.totalLargest));
  const after = k.let(before.max(chunk.largest));
  const offset = safe(k, after);
  const keep = scalar(k, exp2, before.sub(offset));
  const take = scalar(k, exp2, chunk.largest.sub(offset));
  const kept = k.let(k.load("f32", state, rowState.totalSum).mul(keep));
  k.store("f32", state, kept.add(chunk.sum.mul(take)), rowState.totalSum);
  k.store("f32", state, after, rowState.totalLargest);
  const keepLanes = k.let(k.splat(keep));
  const takeLanes = k.let(k.splat(take));
  k.for(0, headDim * 4, k.lanes * 4, (d) => {
    const at = k.let(total.add(d));
    k.store("f32v", at, k.load("f32v", chunk.acc.add(d)).fma(takeLanes, k.load("f32v", at).mul(keepLanes)));
  });
}

/** Ends the chunk of a row held in scratch: into the total, and the chunk starts anew. */
export function endChunk(k: KernelBuilder, headDim: number, total: Address, acc: Address, state: Address): void {
  const largest = k.let(k.load("f32", state, rowState.largest));
  const sum = k.let(k.load("f32", state, rowState.sum));
  foldChunk(k, headDim, total, state, { acc, largest, sum });
  resetChunk(k, state);
  zeroRow(k, headDim, acc);
}

export function zeroRow(k: KernelBuilder, headDim: number, row: Address): void {
  k.for(0, headDim * 4, k.lanes * 4, (d) => k.store("f32v", row.add(d), 0));
}

/** Writes vScale * total / sum to `out`, zeros for a row without any key, and its natural-log lse if asked for. */
export function finishRow(
  k: KernelBuilder,
  headDim: number,
  total: Address,
  state: Address,
  vScale: Value<"f32">,
  out: Address,
  lse: Address | undefined,
): void {
  const sum = k.let(k.load("f32", state, rowState.totalSum));
  const isEmpty = k.let(sum.eq(0));
  const inverse = k.let(k.splat(k.select(isEmpty, k.f32(0), vScale.div(sum))));
  // Adding 0 makes a zero positive whatever the signs of the products that vanished on the way.
  k.for(0, headDim * 4, k.lanes * 4, (d) => {
    k.store("f32v", out.add(d), k.load("f32v", total.add(d)).mul(inverse).add(0));
  });
  if (lse === undefined) return;
  const largest = k.load("f32", state, rowState.totalLargest).mul(Math.LN2);
  k.store("f32", lse, k.select(isEmpty, k.f32(-Infinity), largest.add(scalar(k, log, sum))));
}
