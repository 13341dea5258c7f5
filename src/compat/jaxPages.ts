/**
 * Pages as JAX's paged_attention has them, [numKvHeads, pages, pageSize, headDim], of floating-point numbers or of 8-bit codes with a scale
 * for each row: shared by the op with one query a sequence and by the one with several.
 */
import type { KvTensors, StridedTensor } from "../attention/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { ArgumentError, formatShape, ShapeError, sameShape } from "../tensor/index.ts";
import { floatStorage, requireAxes, requireGroups, requireType } from "./attendOnce.ts";
import { type PageTable, requireInt32, requirePageTable } from "./int32Arrays.ts";

/** JAX's QuantizedTensor: value = weight * scale / 127.5. */
export interface QuantizedPages {
  /** [numKvHeads, pages, pageSize, headDim] i8 */
  readonly weight: DeviceTensor;
  /** [numKvHeads, pages, pageSize, 1] f32: the largest absolute value of each row. */
  readonly scales: DeviceTensor;
}

/** Pages of either kind: [numKvHeads, pages, pageSize, headDim]. */
export type JaxPages = DeviceTensor | QuantizedPages;

/** Pages that passed their checks, as BatchAttention takes them. */
export interface CheckedJaxPages {
  /** What pages and queries say of the spec. There is no scale on the logits: queries come multiplied by it. */
  readonly spec: {
    readonly numQHeads: number;
    readonly numKvHeads: number;
    readonly headDim: number;
    readonly pageSize: number;
    readonly storage: ElementStorage | "i8";
    readonly smScale: 1;
  };
  readonly numPages: number;
  readonly cache: KvTensors;
  readonly scales?: KvTensors;
}

/** Throws ShapeError or ArgumentError naming what does not fit queries of so many heads and channels. */
export function checkJaxPages(
  kPages: JaxPages,
  vPages: JaxPages,
  { numQHeads, headDim }: { readonly numQHeads: number; readonly headDim: number },
): CheckedJaxPages {
  const [k, v] = ["weight" in kPages ? kPages.weight : kPages, "weight" in vPages ? vPages.weight : vPages];
  requireAxes("kPages", k, "numKvHeads, pages, pageSize, headDim");
  if (!sameShape(k.shape, v.shape)) {
    throw new ShapeError(`vPages.shape = ${formatShape(v.shape)} must be kPages.shape = ${formatShape(k.shape)}`);
  }
  const [numKvHeads, numPages, pageSize, headDimK] = k.shape;
  if (headDimK !== headDim) throw new ShapeError(`headDim of kPages = ${headDimK} must be that of q = ${headDim}`);
  requireGroups(numQHeads, numKvHeads);
  const cache = { k: headsLast(k), v: headsLast(v) };
  const shape = { numQHeads, numKvHeads, headDim, pageSize, smScale: 1 } as const;
  if (!("scales" in kPages) && !("scales" in vPages)) {
    return { spec: { ...shape, storage: floatStorage("kPages", k) }, numPages, cache };
  }
  if (!("scales" in kPages && "scales" in vPages)) {
    const missing = "scales" in kPages ? "vPages" : "kPages";
    throw new ArgumentError(`${missing} must be quantised, with scales, because the other pages are`);
  }
  for (const [name, pages] of Object.entries({ kPages, vPages })) {
    requireType(`${name}.weight`, pages.weight, "i8");
    const expected = [numKvHeads, numPages, pageSize, 1];
    if (sameShape(pages.scales.shape, expected)) continue;
    throw new ShapeError(`${name}.scales.shape = ${formatShape(pages.scales.shape)} must be ${formatShape(expected)}`);
  }
  const scales = { k: headsLast(kPages.scales), v: headsLast(vPages.scales) };
  return { spec: { ...shape, storage: "i8" }, numPages, cache, scales };
}

/** The same elements as [pages, pageSize, numKvHeads, channels]. */
function headsLast({ pointer, type, shape }: DeviceTensor): StridedTensor {
  const [numKvHeads, numPages, pageSize, channels] = shape;
  return {
    pointer,
    type,
    shape: [numPages, pageSize, numKvHeads, channels],
    strides: [pageSize * channels, channels, numPages * pageSize * channels, 1],
  };
}

/** Throws unless lengths and page table are int32 and have a row for each of the sequences. */
export function checkJaxLengths(
  lengths: Int32Array,
  pageIndices: PageTable,
  batchSize: number,
  effectiveQLens?: Int32Array,
): void {
  requireInt32("lengths", lengths, batchSize, ", the batch size of q");
  if (effectiveQLens) requireInt32("effectiveQLens", effectiveQLens, batchSize, ", the batch size of q");
  requirePageTable("pageIndices", pageIndices);
  if (pageIndices.shape[0] === batchSize) return;
  throw new ShapeError(`pageIndices.shape[0] = ${pageIndices.shape[0]} must be ${batchSize}, the batch size of q`);
}
