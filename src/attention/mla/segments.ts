/** How a batch of latent attention is cut into runs of neighbouring sequences that are computed in one form, each as a batch of its own. */
import type { AttentionBatch } from "../../ops/attention/index.ts";

/** Which way attention is computed; the results agree to rounding. */
export type MlaStepForm = "absorbed" | "rebuilt";

/** Neighbouring sequences of one form, and their rows. */
export interface MlaSegment {
  readonly form: MlaStepForm;
  /** Its number among the segments of its form. */
  readonly index: number;
  readonly firstSeq: number;
  readonly endSeq: number;
  readonly firstRow: number;
  /** The rows past the batch belong to the last segment. */
  readonly endRow: number;
}

/** Runs of neighbouring sequences of one form; one of no sequences for a batch without any. */
export function cutIntoSegments(batch: AttentionBatch, formOf: (sequence: number) => MlaStepForm): MlaSegment[] {
  const { numRows, numSeqs, queryIndptr } = batch;
  const segments: MlaSegment[] = [];
  for (let firstSeq = 0; firstSeq < numSeqs || segments.length === 0; ) {
    const form = firstSeq < numSeqs ? formOf(firstSeq) : "absorbed";
    let endSeq = Math.min(firstSeq + 1, numSeqs);
    while (endSeq < numSeqs && formOf(endSeq) === form) endSeq++;
    const endRow = endSeq === numSeqs ? numRows : queryIndptr[endSeq];
    const index = segments.filter((segment) => segment.form === form).length;
    segments.push({ form, index, firstSeq, endSeq, firstRow: queryIndptr[firstSeq], endRow });
    firstSeq = endSeq;
    if (numSeqs === 0) break;
  }
  return segments;
}

/** The batch of a segment's sequences and rows. */
export function batchOf(batch: AttentionBatch, { firstSeq, endSeq, firstRow, endRow }: MlaSegment): AttentionBatch {
  const { blockTables, maxPages, pageIndptr } = batch;
  return {
    ...batch,
    numRows: endRow - firstRow,
    numSeqs: endSeq - firstSeq,
    queryIndptr: batch.queryIndptr.slice(firstSeq, endSeq + 1).map((row) => row - firstRow),
    kvLens: batch.kvLens.subarray(firstSeq, endSeq),
    blockTables: pageIndptr ? blockTables : blockTables.subarray(firstSeq * maxPages),
    pageIndptr: pageIndptr?.subarray(firstSeq),
    positionOffsets: batch.positionOffsets?.subarray(firstSeq),
  };
}
