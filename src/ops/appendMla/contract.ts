/**
 * Writes the latents and rope keys of new tokens to the cache of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434; FlashInfer's
 * append_paged_mla_kv_cache), by slot. It is `appendKv` with one head, whose key is the latent and whose value is the rope key.
 */

import type { KvPages } from "../appendKv/index.ts";
import { type PageStorage, rowElements, rowScales, storageBytes } from "../attention/storage.ts";
import type { EncodeOptions } from "../attention/storageCodec.ts";
import type { DeviceTensor, RowsTensor } from "../elementwise/rows.ts";

/** What specialises the append. */
export interface AppendMlaSpec {
  /** Elements of `ckv`, the latent that all heads share. */
  readonly kvLoraRank: number;
  /** Elements of `kpe`, the rope key that all heads share; 0 for layers without rope. */
  readonly qkRopeHeadDim: number;
  /** How pages hold `ckv`. */
  readonly storage: PageStorage;
  /** How pages hold `kpe`; `storage` by default. */
  readonly ropeStorage?: PageStorage;
  readonly encoding?: EncodeOptions;
}

/**
 * ckv: [tokens, kvLoraRank] f32, normalised; kpe: [tokens, qkRopeHeadDim] f32, rotated (unless attention rotates on load); absent without rope.
 * Columns of one array are `rowStride` apart. slotMapping: [at least tokens] i32, -1 writes nothing.
 */
export interface AppendMlaArgs {
  readonly ckv: RowsTensor;
  readonly kpe?: RowsTensor;
  /** Where `ckv` goes: pages of its own, or the first part of each token (`mlaTokenPages`). */
  readonly ckvPages: KvPages;
  readonly kpePages?: KvPages;
  readonly slotMapping: DeviceTensor;
  readonly numTokens?: number;
  /** What both are divided by before they are stored; attention then has it as kScale and as vScale. */
  readonly scale?: number;
}

/** A cache whose tokens are one piece of memory each: the row of `ckv`, its scales, the row of `kpe`, its scales. */
export interface MlaTokenLayout {
  /** Byte offset of slot 0, a multiple of 4. */
  readonly pointer: number;
  readonly numSlots: number;
  readonly pageSize?: number;
  /** Bytes from one token to the next; by default those that it takes. */
  readonly tokenBytes?: number;
}

/**
 * The pages of such a cache. In one element type that is the fused cache [pages, page size, kvLoraRank + qkRopeHeadDim]; with `ckv` in tiles of
 * 128 and `kpe` in bf16 it is FlashMLA's row of 8-bit latents, 656 bytes for 512 and 64 elements.
 */
export function mlaTokenPages(
  spec: AppendMlaSpec,
  { pointer, numSlots, pageSize, tokenBytes }: MlaTokenLayout,
): { readonly ckvPages: KvPages; readonly kpePages: KvPages | undefined } {
  const { kvLoraRank, qkRopeHeadDim, storage, ropeStorage = storage } = spec;
  const rowBytes = (type: PageStorage, channels: number): number => rowElements(type, channels) * storageBytes(type);
  const ckvScales = rowScales(storage, kvLoraRank);
  const kpeScales = qkRopeHeadDim === 0 ? 0 : rowScales(ropeStorage, qkRopeHeadDim);
  // Scales lie at whole words; where there are none, nothing is between the rows.
  const padded = (bytes: number, scales: number): number => (scales > 0 ? Math.ceil(bytes / 4) * 4 : bytes);
  const scalesAt = padded(rowBytes(storage, kvLoraRank), ckvScales);
  const kpeAt = scalesAt + 4 * ckvScales;
  const kpeScalesAt = kpeAt + padded(qkRopeHeadDim === 0 ? 0 : rowBytes(ropeStorage, qkRopeHeadDim), kpeScales);
  const stride = tokenBytes ?? kpeScalesAt + 4 * kpeScales;
  const pages = (type: PageStorage, at: number, scales: number, atScales: number): KvPages => ({
    pointer: pointer + at,
    type,
    numSlots,
    pageSize,
    slotStride: stride / storageBytes(type),
    ...(scales > 0 && { scales: { pointer: pointer + atScales, slotStride: stride / 4 } }),
  });
  return {
    ckvPages: pages(storage, 0, ckvScales, scalesAt),
    kpePages: qkRopeHeadDim === 0 ? undefined : pages(ropeStorage, kpeAt, kpeScales, kpeScalesAt),
  };
}
