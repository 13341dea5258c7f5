/**
 * One call of flash_mla_with_kvcache, as its two forms share it: the options, what q says, and the check of a cache. The forms are in
 * flashMlaDense.ts and flashMlaSparse.ts.
 */
import { fp8TokenLayout, type ResultTensor } from "../attention/index.ts";
import type { CpuDevice } from "../devices/index.ts";
import type { ElementStorage } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { floatStorage, requireAxes } from "./attendOnce.ts";
import type { FlashMLASchedMeta } from "./flashMlaMetadata.ts";
import { requireTensor } from "./mlaPlan.ts";

/** Slots of tokens, page * pageSize + offset: -1 and what is past the cache are none. */
export interface SlotLists {
  readonly values: Int32Array;
  /** [batch, queries, topk] */
  readonly shape: readonly [number, number, number];
}

/** The original's arguments after the metadata. */
export interface FlashMlaOptions {
  /** q's channels^-0.5 by default, which is not DeepSeek's scale: see `mlaSoftmaxScale`. */
  readonly softmaxScale?: number;
  /** Query i of n sees the tokens up to its own; false by default, and for sparse attention. */
  readonly causal?: boolean;
  /** The cache holds rows of 656 bytes (`fp8TokenLayout`); false by default. */
  readonly isFp8Kvcache?: boolean;
  /** Sparse attention: the tokens of each query. Everything below is for it alone. */
  readonly indices?: SlotLists;
  /** [heads] f32: scales each head's result by exp(lse) / (exp(lse) + exp(sink)). The LSE leaves it out. */
  readonly attnSink?: DeviceTensor;
  /** A second cache, and the tokens of it that are attended besides. */
  readonly extraKCache?: DeviceTensor;
  readonly extraIndicesInKvcache?: SlotLists;
  /** [batch]: entries of each list that count, from the first on. */
  readonly topkLength?: Int32Array;
  readonly extraTopkLength?: Int32Array;
}

/** A call whose q has been checked, and the memory that it writes. */
export interface FlashMlaCall {
  readonly device: CpuDevice;
  readonly q: DeviceTensor;
  readonly batch: number;
  readonly queries: number;
  readonly heads: number;
  /** Of a query and of a cache row: headDimV and the rope channels. */
  readonly channels: number;
  readonly headDimV: number;
  readonly softmaxScale: number;
  readonly isFp8Kvcache: boolean;
  readonly options: FlashMlaOptions;
  readonly metadata: FlashMLASchedMeta;
  /** [batch, queries, heads, headDimV] f32 */
  readonly out: DeviceTensor;
  /** Memory that lasts until the call has run. */
  readonly scratch: (shape: readonly number[]) => ResultTensor;
}

/** Key/value heads and storage of a cache. Throws ShapeError or ArgumentError naming it. */
export function checkFlashMlaCache(
  name: string,
  { channels, headDimV, isFp8Kvcache }: FlashMlaCall,
  cache: DeviceTensor,
): { readonly numKvHeads: number; readonly storage: ElementStorage | "fp8Token" } {
  requireAxes(name, cache, "pages, pageSize, kvHeads, channels");
  if (!isFp8Kvcache) {
    requireTensor(name, cache, cache.type, ["pages", "pageSize", "kvHeads", channels]);
    return { numKvHeads: cache.shape[2], storage: floatStorage(name, cache) };
  }
  const { numBytes } = fp8TokenLayout({ kvLoraRank: headDimV, qkRopeHeadDim: channels - headDimV });
  requireTensor(name, cache, "u8", ["pages", "pageSize", 1, numBytes]);
  return { numKvHeads: 1, storage: "fp8Token" };
}
