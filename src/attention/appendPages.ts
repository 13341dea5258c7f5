/** The tensors of a cache as an append takes them: one description of the memory for `recordAppendKv` and `BatchAttention`. */
import type { KvPages, ScalePages } from "../ops/appendKv/index.ts";
import { valueDim } from "../ops/attention/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import type { BatchAttentionSpec } from "./batchAttention.ts";
import { type KvTensors, type LocatedPages, locateKv, type RowShape, scaleRow, storageRow } from "./tensors.ts";

/** What of a spec says how a cache lies. */
export type CachePagesSpec = Pick<
  BatchAttentionSpec,
  "layout" | "pageSize" | "numKvHeads" | "headDim" | "headDimV" | "storage" | "valueStorage"
>;

/**
 * Pages for an append that attention of the spec reads with the same `cache` and `scales`. All pages of the tensors can be written. Throws
 * ShapeError or ArgumentError naming the tensor that does not fit, as BatchAttention does.
 */
export function appendPages(
  spec: CachePagesSpec,
  cache: KvTensors,
  scales?: KvTensors,
): { readonly kPages: KvPages; readonly vPages: KvPages } {
  const { layout = "NHD", pageSize, numKvHeads, headDim, storage, valueStorage = storage } = spec;
  const first = "k" in cache ? cache.k : "kv" in cache ? cache.kv : cache.combined;
  const numPages = first.shape[pageSize === undefined && layout === "HND" ? 1 : 0];
  const find = (name: string, tensors: KvTensors, k: RowShape, v: RowShape) =>
    locateKv(name, tensors, { layout, pageSize, numKvHeads, numPages, k, v });
  const rows = find("cache", cache, storageRow(storage, headDim), storageRow(valueStorage, valueDim(spec)));
  const [kScales, vScales] = [scaleRow(storage, headDim), scaleRow(valueStorage, valueDim(spec))];
  const hasScales = kScales.elements + vScales.elements > 0;
  if (hasScales !== (scales !== undefined)) {
    throw new ArgumentError(
      `scales must be ${hasScales ? "given" : "absent"}: storage ${JSON.stringify(storage)} has ${hasScales ? "scales of rows" : "none"}`,
    );
  }
  const found = scales && find("scales", scales, kScales, vScales);
  const common = { numSlots: numPages * (pageSize ?? 1), pageSize };
  const pages = (type: KvPages["type"], { pointer, strides }: LocatedPages, ofScales?: LocatedPages): KvPages => ({
    ...common,
    type,
    pointer,
    ...named(strides),
    ...(ofScales && { scales: { pointer: ofScales.pointer, ...named(ofScales.strides) } }),
  });
  return {
    kPages: pages(storage, rows.k, kScales.elements > 0 ? found?.k : undefined),
    vPages: pages(valueStorage, rows.v, vScales.elements > 0 ? found?.v : undefined),
  };
}

function named({ page, slot, head }: LocatedPages["strides"]): Omit<ScalePages, "pointer"> {
  return { pageStride: page, slotStride: slot, headStride: head };
}
