/** A layer's cache as appends and flushes of latents take it: one description of the memory for them and for BatchPaluAttention. */
import type { KvPages } from "../../ops/appendKv/index.ts";
import type { LatentPages } from "../../ops/appendLatent/index.ts";
import type { PageStrides } from "../../ops/attention/index.ts";
import { type LatentCache, locateLatents } from "./cache.ts";
import type { PaluLayer } from "./layer.ts";

/**
 * What `recordAppendLatent` and `recordFlushWindow` take, of the layer's storages; all pages of the tensors can be written. Throws ShapeError
 * or ArgumentError naming the tensor that does not fit.
 */
export function appendLatentPages({ layout, table, spec }: PaluLayer, cache: LatentCache): LatentPages {
  const { storage, valueStorage = storage } = spec;
  const { shape } = cache.pages.k;
  const pageSize = shape.length === 3 ? shape[1] : undefined;
  const located = locateLatents(cache, layout, { storage, valueStorage, pageSize, numPages: shape[0] });
  const common = { numSlots: shape[0] * (pageSize ?? 1), pageSize };
  const strides = ({ page, slot }: PageStrides) => ({ pageStride: page, slotStride: slot });
  const pages = (
    type: KvPages["type"],
    pointer: number,
    own: PageStrides,
    scales?: number,
    ofScales?: PageStrides,
  ) => ({
    ...common,
    type,
    pointer,
    ...strides(own),
    ...(scales !== undefined && ofScales && { scales: { pointer: scales, ...strides(ofScales) } }),
  });
  const { kPages, kStrides, kScales, kScaleStrides, vPages, vStrides, vScales, vScaleStrides } = located;
  return {
    layout,
    table,
    kPages: pages(storage, kPages, kStrides, layout.keyScales > 0 ? kScales : undefined, kScaleStrides),
    vPages: pages(valueStorage, vPages, vStrides, layout.valueScales > 0 ? vScales : undefined, vScaleStrides),
  };
}
