/**
 * Masks of single query/key pairs: dense ones packed to the bits that attention reads, and the mask of a tree of drafted tokens.
 * Causal masks and windows need none of this; see `AttentionSpec`.
 */
import type { PackedMask } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/** Queries and keys of each sequence: [sequences]. */
export interface MaskLengths {
  readonly qLens: ArrayLike<number>;
  readonly kvLens: ArrayLike<number>;
}

/**
 * Packs a mask given as one flat array, the sequences one after the other, each [qLen, kvLen] with anything but 0 and false for "sees".
 * The bits are little-endian and every sequence starts a byte: FlashInfer's segment_packbits. Throws ArgumentError if the lengths do not
 * add up to the mask's.
 */
export function packMask(mask: ArrayLike<number | boolean>, lengths: MaskLengths): PackedMask {
  const begins = sequenceBegins(lengths);
  const total = begins[begins.length - 1];
  if (mask.length !== total) {
    throw new ArgumentError(
      `mask must have qLen * kvLen entries of each sequence, together ${total}, got ${mask.length}`,
    );
  }
  return packVisible(lengths, (s, i, t) => Boolean(mask[begins[s] + i * lengths.kvLens[s] + t]));
}

/** The same for a rule: `sees(s, i, t)` says whether query i of sequence s sees its key t. */
export function packVisible(
  lengths: MaskLengths,
  sees: (sequence: number, query: number, key: number) => boolean,
): PackedMask {
  const indptr = packedIndptr(lengths);
  const bits = new Uint8Array(indptr[indptr.length - 1]);
  for (let s = 0; s + 1 < indptr.length; s++) {
    const [qLen, kvLen] = [lengths.qLens[s], lengths.kvLens[s]];
    for (let i = 0; i < qLen; i++) {
      for (let t = 0; t < kvLen; t++) {
        const bit = i * kvLen + t;
        if (sees(s, i, t)) bits[indptr[s] + (bit >> 3)] |= 1 << (bit & 7);
      }
    }
  }
  return { bits, indptr };
}

/** The flat mask of 0 and 1 that `packMask` would pack to these bits. Throws ArgumentError if the bits are too few for the lengths. */
export function unpackMask({ bits, indptr }: PackedMask, lengths: MaskLengths): Uint8Array {
  const begins = sequenceBegins(lengths);
  const mask = new Uint8Array(begins[begins.length - 1]);
  for (let s = 0; s + 1 < begins.length; s++) {
    const numBits = begins[s + 1] - begins[s];
    if (numBits > 0 && !(indptr[s] >= 0 && indptr[s] + Math.ceil(numBits / 8) <= bits.length)) {
      throw new ArgumentError(
        `indptr[${s}] = ${indptr[s]} must leave ${Math.ceil(numBits / 8)} of the ${bits.length} bytes of the mask for sequence ${s}`,
      );
    }
    for (let bit = 0; bit < numBits; bit++) mask[begins[s] + bit] = (bits[indptr[s] + (bit >> 3)] >> (bit & 7)) & 1;
  }
  return mask;
}

/** First byte of each sequence's packed mask, and behind them the number of bytes: [sequences + 1]. */
export function packedIndptr(lengths: MaskLengths): Int32Array {
  return runningSum(lengths, (numBits) => Math.ceil(numBits / 8));
}

/**
 * The mask of a drafted tree, [parents.length, kvLen], for tree speculation: the drafted tokens are the last ones of the sequence's kvLen,
 * and each sees the tokens before the tree, its ancestors and itself. parents[i] is the index of draft i's parent, or -1 where that
 * is the last token before the tree; parents come before their children. Throws ArgumentError for a tree that is none.
 */
export function treeMask(parents: ArrayLike<number>, kvLen: number): Uint8Array {
  const numDrafts = parents.length;
  const context = kvLen - numDrafts;
  if (!Number.isInteger(kvLen) || context < 0) {
    throw new ArgumentError(`kvLen counts the ${numDrafts} drafted tokens and so must be at least that, got ${kvLen}`);
  }
  const mask = new Uint8Array(numDrafts * kvLen);
  for (let i = 0; i < numDrafts; i++) {
    const parent = parents[i];
    if (!Number.isInteger(parent) || parent < -1 || parent >= i) {
      throw new ArgumentError(`parents[${i}] must be -1 or an earlier draft, below ${i}, got ${parent}`);
    }
    const row = i * kvLen;
    if (parent === -1) mask.fill(1, row, row + context);
    else mask.copyWithin(row, parent * kvLen, (parent + 1) * kvLen);
    mask[row + context + i] = 1;
  }
  return mask;
}

/** Where each sequence's part of a flat mask begins, and behind them its length. */
function sequenceBegins(lengths: MaskLengths): Int32Array {
  return runningSum(lengths, (numBits) => numBits);
}

function runningSum({ qLens, kvLens }: MaskLengths, sizeOf: (numBits: number) => number): Int32Array {
  if (qLens.length !== kvLens.length) {
    throw new ArgumentError(`kvLens must have an entry for each of the ${qLens.length} of qLens, got ${kvLens.length}`);
  }
  const sums = new Int32Array(qLens.length + 1);
  for (let s = 0; s < qLens.length; s++) sums[s + 1] = sums[s] + sizeOf(qLens[s] * kvLens[s]);
  return sums;
}
