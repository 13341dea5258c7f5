/**
 * Kernel parts: the softmax of attention over one block of keys after another, the sum of chunks, and the end of a row. Logits are in
 * powers of two (the factor log2 e is part of the query's scale). Masked logits are true infinities: a row without any key has the largest
 * logit -infinity and the sum 0, and every difference of two infinities is guarded.
 */
import { exp2, type KernelBuilder, log, scalar, tanh, type Value } from "../../kernels/index.ts";
import { type Extent, f32Bytes, roundUp, storeExactly, zeroRow } from "./dims.ts";
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

/** Which keys of a block a row sees, counted from the block's start. Others weigh exactly 0. */
export interface KeyMask {
  /** Looked at only where this is not 0. */
  readonly needed: Value<"i32">;
  /** Keys outside [begin, end) are hidden. */
  readonly begin: Value<"i32">;
  readonly end: Value<"i32">;
  /** Bit j says whether key j is visible too. */
  readonly bits?: Value<"i32">;
  /** Added to the logits of keys hidden by begin and end, instead of hiding them; only keys from `numKeys` on are out. In score units. */
  readonly bias?: { readonly amount: number; readonly numKeys: Value<"i32"> };
}

/** What becomes of a score before the softmax. */
export interface LogitsTransform {
  /** The scores are the logits divided by the cap if there is one; tanh comes first, and then the factor cap log2 e. */
  readonly softCap?: number;
  /** Adds slope * (j - ownKey) to the score of key j; the slope in the units of the scores. */
  readonly bias?: { readonly slope: Value<"f32">; readonly ownKey: Value<"i32"> };
  readonly mask: KeyMask;
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
    const hide = isMasked ? maskLanes(k, mask) : undefined;
    for (let j = 0; j < keyBlock; j += k.lanes) {
      let logits = k.let(k.load("f32v", scores, j * 4));
      if (slope && ownKey) logits = k.let(k.laneIndices().add(j).sub(ownKey).toF32().fma(slope, logits));
      if (softCap !== undefined) logits = k.let(tanh(k, logits).mul(softCap * Math.LOG2E));
      if (hide) logits = k.let(hide(logits, j));
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
    const weights = k.let(exp2(k, k.load("f32v", scores, j * 4).sub(offsets)));
    k.store("f32v", scores, weights, j * 4);
    sum.set(sum.value.add(weights));
  }
  k.store("f32", state, after, rowState.largest);
  k.store("f32", state, alpha.value, rowState.alpha);
  k.store("f32", state, k.load("f32", state, rowState.sum).mul(alpha.value).add(k.sumLanes(sum.value)), rowState.sum);
}

/** The function that hides the logits of keys j, j + 1, ... */
function maskLanes(k: KernelBuilder, mask: KeyMask): (logits: Value<"f32v">, j: number) => Value<"f32v"> {
  const { bits, bias } = mask;
  const [begin, end] = [mask.begin, mask.end].map((key) => k.let(k.splat(key)));
  const words = bits && k.let(k.splat(bits));
  // 2^lane, by way of the exponent of a float.
  const laneBits = bits && k.let(k.laneIndices().add(127).shl(23).as("f32v").truncate());
  const numKeys = bias && k.let(k.splat(bias.numKeys));
  return (logits, j) => {
    const key = k.let(k.laneIndices().add(j));
    let visible = key.ge(begin).and(key.lt(end));
    if (words && laneBits) visible = visible.and(words.shrU(j).and(laneBits).ne(0));
    if (!bias || !numKeys) return k.select(visible, logits, -Infinity);
    return k.select(key.lt(numKeys), k.let(k.select(visible, logits, logits.add(bias.amount))), -Infinity);
  };
}

/** A weighted sum of values with its largest logit and its sum of weights. */
export interface Partial {
  readonly acc: Address;
  readonly largest: Value<"f32">;
  readonly sum: Value<"f32">;
}

/**
 * Adds the partial result of the next chunk to the total of a row: total [channels], and totalLargest and totalSum of its state. The
 * first chunk arrives unchanged to the bit, and an empty chunk changes nothing.
 */
export function foldChunk(k: KernelBuilder, channels: Extent, total: Address, state: Address, chunk: Partial): void {
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
  k.for(0, f32Bytes(k, roundUp(k, channels, k.lanes)), k.lanes * 4, (d) => {
    const at = k.let(total.add(d));
    k.store("f32v", at, k.load("f32v", chunk.acc.add(d)).fma(takeLanes, k.load("f32v", at).mul(keepLanes)));
  });
}

/** Ends the chunk of a row held in scratch: into the total, and the chunk starts anew. */
export function endChunk(k: KernelBuilder, channels: Extent, total: Address, acc: Address, state: Address): void {
  const largest = k.let(k.load("f32", state, rowState.largest));
  const sum = k.let(k.load("f32", state, rowState.sum));
  foldChunk(k, channels, total, state, { acc, largest, sum });
  resetChunk(k, state);
  zeroRow(k, acc, channels);
}

/** Where and how a finished row is written. */
export interface RowEnd {
  readonly vScale: Value<"f32">;
  /** The row's sink as a logit in powers of two. */
  readonly sink?: Value<"f32">;
  readonly out: Address;
  readonly lse?: { readonly address: Address; readonly base: "e" | "2" };
}

/** Writes vScale * total / sum to `out`, zeros for a row without any key, and its lse (without the sink) if asked for. */
export function finishRow(k: KernelBuilder, channels: Extent, total: Address, state: Address, end: RowEnd): void {
  const sum = k.let(k.load("f32", state, rowState.totalSum));
  const largest = k.let(k.load("f32", state, rowState.totalLargest));
  const isEmpty = k.let(sum.eq(0));
  const inverse = k.let(k.select(isEmpty, k.f32(0), end.vScale.div(shareOfSink(k, sum, largest, end.sink))));
  const inverses = k.let(k.splat(inverse));
  // Adding 0 makes a zero positive whatever the signs of the products that vanished on the way.
  storeExactly(k, end.out, channels, {
    vector: (d) => k.load("f32v", total.add(d)).mul(inverses).add(0),
    scalar: (d) => k.load("f32", total.add(d)).mul(inverse).add(0),
  });
  if (end.lse === undefined) return;
  const [unit, logUnit] = end.lse.base === "e" ? [Math.LN2, 1] : [1, Math.LOG2E];
  const lse = largest.mul(unit).add(scalar(k, log, sum).mul(logUnit));
  k.store("f32", end.lse.address, k.select(isEmpty, k.f32(-Infinity), lse));
}

/** The sum of weights with the weight 2^(sink - largest) of a logit that has no value. A sink far above all logits makes it infinite. */
function shareOfSink(
  k: KernelBuilder,
  sum: Value<"f32">,
  largest: Value<"f32">,
  sink: Value<"f32"> | undefined,
): Value<"f32"> {
  if (sink === undefined) return sum;
  return k.let(sum.add(scalar(k, exp2, sink.sub(safe(k, largest)))));
}
