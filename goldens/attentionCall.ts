/**
 * One attention call as the golden cases have them: numbers instead of device buffers. Runs it on the reference; attentionOnCpu.ts is the
 * same for the CPU device. Which case is which call is in attention.ts, variants.ts and gradients.ts.
 */
import type { AttentionBatch } from "../src/ops/attention/batch.ts";
import type { AttentionSpec } from "../src/ops/attention/contract.ts";
import { attentionReference } from "../src/ops/attention/reference.ts";
import type { PageStrides } from "../src/ops/attention/storage.ts";
import { attentionOnCpu } from "./attentionOnCpu.ts";
import type { GoldenTarget } from "./case.ts";
import { type NumberArray, roundTo } from "./inputs.ts";

/** One attention call of a case, ready for either target. */
export interface AttentionCall {
  readonly spec: Omit<AttentionSpec, "storage">;
  /** Type of the pages in the case. */
  readonly storage: string;
  readonly batch: AttentionBatch;
  readonly q: NumberArray;
  /** Decoded numbers, before any scale. `vPages` is the same array as `kPages` in the combined layout. */
  readonly kPages: NumberArray;
  readonly vPages: NumberArray;
  readonly kStrides: PageStrides;
  readonly vStrides: PageStrides;
  readonly vOffset: number;
  readonly alibiSlopes?: NumberArray;
  readonly sinks?: NumberArray;
  readonly kScale?: number;
  readonly vScale?: number;
  /** The scaled keys and values are rounded to this type before use, as JAX's ragged reference does. */
  readonly scaledType?: string;
  /** One factor for each stored row, JAX's int8 scheme, and their strides. */
  readonly rowScales?: { readonly k: NumberArray; readonly v: NumberArray; readonly strides: PageStrides };
}

/** [numRows, numQHeads, headDimV] and [numRows, numQHeads] */
export interface AttentionResults {
  readonly out: ArrayLike<number>;
  readonly lse: ArrayLike<number>;
}

export async function runCall(call: AttentionCall, target: GoldenTarget): Promise<AttentionResults> {
  return target.name === "cpu" ? attentionOnCpu(call, target.device) : onReference(call);
}

function onReference(call: AttentionCall): AttentionResults {
  const { scaledType, kScale = 1, vScale = 1, rowScales } = call;
  const { headDim } = call.spec;
  let { kPages, vPages } = call;
  if (rowScales) {
    kPages = scaleRows(kPages, rowScales.k, headDim);
    vPages = scaleRows(vPages, rowScales.v, headDim);
  }
  if (scaledType && (kScale !== 1 || vScale !== 1)) {
    kPages = Float64Array.from(kPages, (value) => roundTo(scaledType, value * kScale));
    vPages = Float64Array.from(vPages, (value) => roundTo(scaledType, value * vScale));
    return attentionReference(call.spec, call.batch, { ...call, kPages, vPages, kScale: 1, vScale: 1 });
  }
  return attentionReference(call.spec, call.batch, { ...call, kPages, vPages });
}

function scaleRows(values: NumberArray, scales: NumberArray, headDim: number): Float64Array {
  return Float64Array.from(values, (value, i) => (value * scales[Math.floor(i / headDim)]) / 127.5);
}

/** Contiguous rows of a ragged call: sequence s has the keys kvIndptr[s] up to kvIndptr[s + 1]. No page size belongs to it. */
export function contiguousBatch(queryIndptr: Int32Array, kvIndptr: Int32Array): AttentionBatch {
  const numSeqs = kvIndptr.length - 1;
  return {
    numRows: queryIndptr[numSeqs],
    numSeqs,
    queryIndptr,
    kvLens: Int32Array.from({ length: numSeqs }, (_, s) => kvIndptr[s + 1] - kvIndptr[s]),
    blockTables: kvIndptr,
    maxPages: 1,
    numPages: kvIndptr[numSeqs],
    allowUnseeing: true,
  };
}
