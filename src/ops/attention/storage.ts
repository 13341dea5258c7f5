/**
 * How keys and values lie in memory: the storage types of a page, how many elements a row of a head takes in each, and the strides of
 * the usual page layouts. Decoding is keyLoader.ts's work on the device and storageCodec.ts's on the host.
 */
import { ArgumentError } from "../../tensor/index.ts";

/** One number an element; a scale, if there is one, is for the whole tensor (`kScale`, `vScale`). */
export type ElementStorage = "f32" | "f16" | "bf16" | "f8e4m3" | "f8e5m2";

/**
 * Unsigned codes of a few bits with an f32 scale and an f32 zero point for every `groupSize` channels of a row: value = (code - zero) *
 * scale. Codes are a little-endian stream of bits; eight codes take `bits` bytes, and a row is padded to a multiple of 4 bytes. Its
 * scales are pairs (scale, zero), one for each group. Symmetric schemes store code + 2^(bits - 1) and that as the zero point.
 */
export interface GroupedStorage {
  readonly kind: "grouped";
  readonly bits: 2 | 3 | 4 | 8;
  /** Channels that share scale and zero: a multiple of 8, or 0 for the whole row. The last group of a row may be shorter. */
  readonly groupSize: number;
}

/** e4m3 codes with an f32 scale for every `tile` channels of a row: value = code * scale. The latent part of FlashMLA's 656-byte token. */
export interface TiledStorage {
  readonly kind: "tiled";
  readonly tile: number;
}

/** How keys or values are stored. "i8": signed codes with an f32 scale for each row, JAX's scheme: value = code * scale / 127.5. */
export type PageStorage = ElementStorage | "i8" | GroupedStorage | TiledStorage;

const elementBytes: Readonly<Record<ElementStorage | "i8", number>> = {
  f32: 4,
  f16: 2,
  bf16: 2,
  f8e4m3: 1,
  f8e5m2: 1,
  i8: 1,
};

/** Bytes of the unit that strides of this storage are counted in: one number, or one byte where numbers are packed. */
export function storageBytes(storage: PageStorage): number {
  return typeof storage === "string" ? elementBytes[storage] : 1;
}

/** Units (of `storageBytes`) that a row of so many channels takes, its scales apart. */
export function rowElements(storage: PageStorage, channels: number): number {
  if (typeof storage === "string" || storage.kind === "tiled") return channels;
  return Math.ceil((Math.ceil(channels / 8) * storage.bits) / 4) * 4;
}

/** f32 scales (and zero points) of one row of so many channels. */
export function rowScales(storage: PageStorage, channels: number): number {
  if (typeof storage === "string") return storage === "i8" ? 1 : 0;
  if (storage.kind === "tiled") return Math.ceil(channels / storage.tile);
  return 2 * (storage.groupSize === 0 ? 1 : Math.ceil(channels / storage.groupSize));
}

/** Throws ArgumentError naming the field of `name` that is out of range. */
export function validateStorage(name: string, storage: PageStorage): void {
  if (typeof storage === "string") {
    if (storage in elementBytes) return;
    throw new ArgumentError(
      `${name} must be one of ${Object.keys(elementBytes).join(", ")} or an object, got ${storage}`,
    );
  }
  if (storage.kind === "tiled") {
    if (Number.isInteger(storage.tile) && storage.tile > 0 && storage.tile % 8 === 0) return;
    throw new ArgumentError(`${name}.tile must be a positive multiple of 8, got ${storage.tile}`);
  }
  if (![2, 3, 4, 8].includes(storage.bits))
    throw new ArgumentError(`${name}.bits must be 2, 3, 4 or 8, got ${storage.bits}`);
  if (!Number.isInteger(storage.groupSize) || storage.groupSize < 0 || storage.groupSize % 8 !== 0) {
    throw new ArgumentError(
      `${name}.groupSize must be a multiple of 8, or 0 for the whole row, got ${storage.groupSize}`,
    );
  }
}

/** Distances between pages, between the slots of a page, and between key/value heads: in units of `storageBytes`, for scales in f32. */
export interface PageStrides {
  readonly page: number;
  readonly slot: number;
  readonly head: number;
}

/** What the strides of a dense layout follow from. */
export interface PageShape {
  /** Tokens per page; 1 where keys lie in one contiguous row after the other. */
  readonly pageSize?: number;
  readonly numKvHeads: number;
  /** Units of one head's row: the head dimension, or `rowElements` where numbers are packed. */
  readonly headDim: number;
}

/** Pages [page][slot][kv head][channel], keys and values apart. */
export function nhdStrides({ pageSize = 1, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: pageSize * numKvHeads * headDim, slot: numKvHeads * headDim, head: headDim };
}

/** Pages [page][kv head][slot][channel]: the layout of the engine's own cache. */
export function hndStrides({ pageSize = 1, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: pageSize * numKvHeads * headDim, slot: headDim, head: pageSize * headDim };
}

/** Pages [page][slot][2 * kv head][channel], keys at even and values at odd heads: the values start `headDim` elements later. */
export function combinedStrides({ pageSize = 1, numKvHeads, headDim }: PageShape): PageStrides {
  return { page: 2 * pageSize * numKvHeads * headDim, slot: 2 * numKvHeads * headDim, head: 2 * headDim };
}
