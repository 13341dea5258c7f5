/**
 * Writes slices of new rows to a cache: JAX's kv_cache_update, which ragged paged attention is fed with. Keys and values are heads of
 * one row, keys at even and values at odd ones. Scattering single tokens is `appendKv`.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { type CheckedPages, checkPages, headRows, type KvPages } from "../appendKv/pages.ts";
import { type ElementStorage, type PageStorage, storageBytes } from "../attention/storage.ts";
import type { EncodeOptions } from "../attention/storageCodec.ts";
import { checkPositive, type DeviceTensor, rowLength } from "../elementwise/rows.ts";

/** What specialises the update. */
export interface KvCacheUpdateSpec {
  /** Heads of a row: twice the key/value heads where keys and values take turns. */
  readonly numHeads: number;
  readonly headDim: number;
  readonly storage: PageStorage;
  /** Type of the new rows: f32 is encoded as `appendKv` does, that of the storage is copied. f32 by default. */
  readonly source?: ElementStorage;
  readonly encoding?: EncodeOptions;
}

/**
 * newKv: [tokens, numHeads, headDim] of the source type. slices: i32 [3, capacity], of which the first numSlices columns are read: where a
 * slice begins in the cache (slot), where in newKv (row), and its length. `slicesOnHost` are the same values, which are what is checked: each
 * slice lies in one page of `cache.pageSize` slots, is 1 to pageSize long, and no two slices share a slot.
 */
export interface KvCacheUpdateArgs {
  readonly newKv: DeviceTensor;
  readonly slices: DeviceTensor;
  readonly slicesOnHost: ArrayLike<number>;
  readonly numSlices: number;
  readonly cache: KvPages;
}

/** Counts and pages of a call that passed its checks. */
export interface CheckedKvCacheUpdate {
  readonly numTokens: number;
  /** Columns of `slices`. */
  readonly capacity: number;
  readonly cache: CheckedPages;
}

/** Throws ShapeError or ArgumentError naming the argument or the slice that does not fit. */
export function checkKvCacheUpdate(spec: KvCacheUpdateSpec, args: KvCacheUpdateArgs): CheckedKvCacheUpdate {
  const { numHeads, headDim, storage, source = "f32" } = spec;
  const { newKv, slices, slicesOnHost, numSlices } = args;
  checkPositive("numHeads", numHeads);
  checkPositive("headDim", headDim);
  if (source !== "f32" && source !== storage) {
    throw new ArgumentError(`source must be f32 or that of the cache, ${JSON.stringify(storage)}, got ${source}`);
  }
  if (newKv.type !== source) throw new ArgumentError(`newKv must be of type ${source}, got ${newKv.type}`);
  if (newKv.pointer % storageBytes(source) !== 0) {
    throw new ArgumentError(`newKv.pointer must be a multiple of ${storageBytes(source)}, got ${newKv.pointer}`);
  }
  if (newKv.shape.length < 2 || rowLength(newKv) !== numHeads * headDim) {
    throw new ShapeError(
      `newKv must have rows of ${numHeads * headDim} elements, got shape [${newKv.shape.join(", ")}]`,
    );
  }
  if (!Number.isInteger(numSlices) || numSlices < 0) {
    throw new ArgumentError(`numSlices must be a whole number of at least 0, got ${numSlices}`);
  }
  if (slices.type !== "i32") throw new ArgumentError(`slices must be of type i32, got ${slices.type}`);
  const [three, capacity] = slices.shape;
  if (slices.shape.length !== 2 || three !== 3 || capacity < numSlices) {
    throw new ShapeError(`slices must have shape [3, at least ${numSlices}], got [${slices.shape.join(", ")}]`);
  }
  if (slicesOnHost.length !== 3 * capacity) {
    throw new ShapeError(`slicesOnHost must have the ${3 * capacity} entries of slices, got ${slicesOnHost.length}`);
  }
  const cache = checkPages("cache", headRows(storage, numHeads, headDim), args.cache);
  const numTokens = newKv.shape[0];
  checkSlices(slicesOnHost, numSlices, { numTokens, numSlots: cache.numSlots, pageSize: cache.pageSize });
  return { numTokens, capacity, cache };
}

/** Throws ArgumentError naming the slice of `slices` ([3, capacity]) that breaks a rule. */
export function checkSlices(
  slices: ArrayLike<number>,
  numSlices: number,
  sizes: { readonly numTokens: number; readonly numSlots: number; readonly pageSize: number },
): void {
  const { numTokens, numSlots, pageSize } = sizes;
  const capacity = slices.length / 3;
  const owners = new Map<number, number>();
  for (let i = 0; i < numSlices; i++) {
    const [cacheStart, newStart, length] = [slices[i], slices[capacity + i], slices[2 * capacity + i]];
    const name = `slice ${i} (cache start ${cacheStart}, new start ${newStart}, length ${length})`;
    if (!Number.isInteger(length) || length < 1 || length > pageSize) {
      throw new ArgumentError(`${name} must have a length from 1 to the page size ${pageSize}`);
    }
    if (!Number.isInteger(newStart) || newStart < 0 || newStart + length > numTokens) {
      throw new ArgumentError(`${name} must lie in the ${numTokens} rows of newKv`);
    }
    if (!Number.isInteger(cacheStart) || cacheStart < 0 || cacheStart + length > numSlots) {
      throw new ArgumentError(`${name} must lie in the ${numSlots} slots of the cache`);
    }
    if ((cacheStart % pageSize) + length > pageSize) {
      throw new ArgumentError(`${name} must lie in one page of ${pageSize} slots`);
    }
    for (let slot = cacheStart; slot < cacheStart + length; slot++) {
      const other = owners.get(slot);
      if (other !== undefined) throw new ArgumentError(`${name} must not write slot ${slot}: slice ${other} does`);
      owners.set(slot, i);
    }
  }
}
