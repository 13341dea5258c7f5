/** Options of FlashInfer's BatchMLAPagedAttentionWrapper and of its runs, and the check of the scales among them. */
import type { ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import type { PageTable } from "./int32Arrays.ts";

/** Options of the wrapper. With useCudaGraph, every batch has the size of the buffers, which take each plan's arrays. */
export interface BatchMLAOptions {
  readonly useCudaGraph?: boolean;
  readonly qoIndptr?: Int32Array;
  readonly kvIndptr?: Int32Array;
  readonly kvIndices?: Int32Array;
  readonly kvLenArr?: Int32Array;
  /** "auto" by default. The first three mean the same here; "cutlass" has limits and arguments of its own, and runs without a plan. */
  readonly backend?: "auto" | "fa2" | "fa3" | "cutlass";
}

/** Options of a run. */
export interface BatchMLARunOptions {
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  readonly lse?: DeviceTensor;
  /** Also return the LSE, [rows, numHeads]; false by default. */
  readonly returnLse?: boolean;
  /** The LSE to base e in place of 2. */
  readonly returnLseBaseOnE?: boolean;
  /** For the backend "cutlass" alone: tokens and pages of each sequence. */
  readonly kvLen?: Int32Array;
  readonly pageTable?: PageTable;
  /** For 8-bit caches, and needed there: what both parts were divided by. */
  readonly kpeScale?: number;
  readonly ckvScale?: number;
  /** In place of ckvScale: [pages, pageSize, headDimCkv / 128] f32. */
  readonly ckvScaleArr?: DeviceTensor;
}

/** The scales of a run over caches of this type. Throws ArgumentError for ones that are missing or have no meaning. */
export function checkScales(
  type: ElementStorage,
  { ckvScale, ckvScaleArr, kpeScale }: BatchMLARunOptions,
): Pick<BatchMLARunOptions, "ckvScale" | "kpeScale"> {
  const scales = { ckvScale, ckvScaleArr, kpeScale };
  if (type !== "f8e4m3") {
    for (const [name, scale] of Object.entries(scales)) {
      if (scale !== undefined) throw new ArgumentError(`${name} must be absent: kvDataType = ${type} has no scales`);
    }
    return {};
  }
  if ((ckvScale === undefined) === (ckvScaleArr === undefined)) {
    throw new ArgumentError("exactly one of ckvScale and ckvScaleArr must be given for kvDataType = f8e4m3");
  }
  if (kpeScale === undefined) throw new ArgumentError("kpeScale must be given for kvDataType = f8e4m3");
  return { ckvScale, kpeScale };
}
