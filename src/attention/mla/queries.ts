/** Queries of latent attention put together: heads that come as two tensors, rope channels apart, become rows of one. */
import { recordCopyHeads } from "../../ops/copyHeads/index.ts";
import type { RowsTensor } from "../../ops/elementwise/index.ts";
import { checkHeads, type HeadsTensor } from "../../ops/headProjection/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError } from "../../tensor/index.ts";

/** Where whole queries lie: [numRows, numHeads, channels + ropeChannels] f32, dense. */
export interface QueryRows {
  readonly pointer: number;
  readonly numRows: number;
  readonly numHeads: number;
  readonly channels: number;
  readonly ropeChannels: number;
}

/** Some channels of every head, from `first` on. */
export function queryChannels(rows: QueryRows, first: number, channels: number): HeadsTensor & RowsTensor {
  const { pointer, numRows, numHeads } = rows;
  const width = rows.channels + rows.ropeChannels;
  return {
    type: "f32",
    pointer: pointer + first * 4,
    shape: [numRows, numHeads, channels],
    rowStride: numHeads * width,
    headStride: width,
  };
}

/** The two parts of a call's queries, [numTokens, numHeads, channels of the part] each, and what each is multiplied by. */
export interface QueryParts {
  /** Of the first part: what errors call it. */
  readonly name: "qLatent" | "qNope";
  /** Nothing is copied of a tensor that lies where it belongs already. */
  readonly x: HeadsTensor;
  readonly factor?: number;
  /** Absent exactly if there are no rope channels. */
  readonly qPe: HeadsTensor | undefined;
  readonly ropeFactor: number;
  readonly numTokens: number;
}

/** Records the copies. Returns the whole queries. Throws ShapeError or ArgumentError naming the part that does not fit. */
export function recordQueries(recorder: Recorder, rows: QueryRows, parts: QueryParts): RowsTensor {
  const { numHeads, channels, ropeChannels } = rows;
  const { name, x, factor, qPe, ropeFactor, numTokens } = parts;
  if ((qPe === undefined) !== (ropeChannels === 0)) {
    throw new ArgumentError(`qPe must be given exactly if qkRopeHeadDim is not 0, which is ${ropeChannels}`);
  }
  checkHeads(name, x, numTokens, numHeads, channels);
  if (qPe) checkHeads("qPe", qPe, numTokens, numHeads, ropeChannels);
  const out = queryChannels(rows, 0, channels);
  if (x.pointer !== out.pointer) {
    recordCopyHeads(recorder, { channels }, { x, out, numTokens, factor }, { overlap: qPe !== undefined });
  }
  if (qPe) {
    const ropeOut = queryChannels(rows, channels, ropeChannels);
    const copy = { x: qPe, out: ropeOut, numTokens, factor: ropeFactor };
    recordCopyHeads(recorder, { channels: ropeChannels }, copy);
  }
  return queryChannels(rows, 0, channels + ropeChannels);
}
