/** FlashInfer's masks of single pairs, dense or packed, and how a window goes together with them. */
import { packedIndptr, packMask, packVisible } from "../attention/index.ts";
import type { AttentionBatch, PackedMask } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";

/** A mask given as flat booleans or as packed bits; the bits win. Throws ArgumentError for one of another size. */
export function maskOf(
  batch: Pick<AttentionBatch, "queryIndptr" | "kvLens" | "numSeqs">,
  customMask: ArrayLike<number | boolean> | undefined,
  packedCustomMask: Uint8Array | undefined,
): PackedMask | undefined {
  const lengths = lengthsOf(batch);
  if (packedCustomMask) {
    const indptr = packedIndptr(lengths);
    const numBytes = indptr[batch.numSeqs];
    if (packedCustomMask.length === numBytes) return { bits: packedCustomMask.slice(), indptr };
    throw new ArgumentError(
      `packedCustomMask.length = ${packedCustomMask.length} must be ${numBytes}, each sequence in whole bytes`,
    );
  }
  return customMask && packMask(customMask, lengths);
}

/** The mask with the keys before the window hidden too; without a mask, only these. */
export function windowedMask(
  batch: AttentionBatch,
  mask: PackedMask | undefined,
  slidingWindow = Infinity,
): PackedMask {
  if (mask && slidingWindow === Infinity) return mask;
  const lengths = lengthsOf(batch);
  return packVisible(lengths, (s, i, t) => {
    const kvLen = lengths.kvLens[s];
    const position = kvLen - lengths.qLens[s] + i;
    return t > position - slidingWindow && (!mask || isSet(mask, s, i * kvLen + t));
  });
}

function isSet({ bits, indptr }: PackedMask, sequence: number, bit: number): boolean {
  return ((bits[indptr[sequence] + (bit >> 3)] >> (bit & 7)) & 1) === 1;
}

function lengthsOf({ queryIndptr, kvLens, numSeqs }: Pick<AttentionBatch, "queryIndptr" | "kvLens" | "numSeqs">) {
  const qLens = Int32Array.from({ length: numSeqs }, (_, s) => queryIndptr[s + 1] - queryIndptr[s]);
  return { qLens, kvLens: kvLens.subarray(0, numSeqs) };
}
