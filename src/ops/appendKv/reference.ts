/** The append by its definition: rows are encoded by the host's codec and scattered, one after the other. */
import type { ElementStorage, PageStorage } from "../attention/storage.ts";
import { decodeRows, type EncodeOptions, encodeRows } from "../attention/storageCodec.ts";
import type { AppendKvSpec } from "./contract.ts";
import { checkPages, headRows, type KvPages } from "./pages.ts";

/** The value a page of this storage holds after `x` (an f32 value) was written to it. */
export function storedValue(storage: ElementStorage, x: number): number {
  return decodeRows(storage, encodeRows(storage, [x], 1), 1)[0];
}

/**
 * Writes x ([tokens, numKvHeads * headDim]) to `pages` ([slots, numKvHeads * headDim], changed in place) by slot, as the numbers that the storage
 * keeps of them; -1 writes nothing. Called once for the keys and once for the values, then with their `headDim` and `storage`.
 */
export function appendKv(
  { numKvHeads, headDim, storage, encoding }: AppendKvSpec,
  x: ArrayLike<number>,
  slotMapping: ArrayLike<number>,
  pages: Float32Array | Float64Array,
): void {
  const length = numKvHeads * headDim;
  const kept = decodeRows(storage, encodeRows(storage, x, headDim, encoding), headDim);
  for (let token = 0; token * length < x.length; token++) {
    const slot = slotMapping[token];
    if (slot === -1) continue;
    for (let i = 0; i < length; i++) pages[slot * length + i] = kept[token * length + i];
  }
}

/** Rows to be stored, [tokens, numHeads, channels]. */
export interface RowsToStore {
  readonly storage: PageStorage;
  readonly numHeads: number;
  readonly channels: number;
  readonly values: Float32Array;
  readonly encoding?: EncodeOptions;
  /** What the numbers are divided by first, in f32. */
  readonly divisor?: number;
}

/** The same to the last bit: writes codes and scales to where `pages` has them in `memory`, a device's memory or a copy of a part of it. */
export function appendRows(
  memory: Uint8Array,
  { storage, numHeads, channels, values, encoding, divisor }: RowsToStore,
  slotMapping: ArrayLike<number>,
  pages: KvPages,
): void {
  const {
    numSlots,
    pageSize,
    scales: scalesAt,
    ...rowsAt
  } = checkPages("pages", headRows(storage, numHeads, channels), pages);
  const scaled = divisor === undefined ? values : values.map((x) => x / Math.fround(divisor));
  for (let token = 0; token * numHeads * channels < values.length; token++) {
    const slot = slotMapping[token];
    if (slot < 0 || slot >= numSlots) continue;
    for (let head = 0; head < numHeads; head++) {
      const first = (token * numHeads + head) * channels;
      const { units, scales } = encodeRows(storage, scaled.subarray(first, first + channels), channels, encoding);
      for (const [part, { pointer, pageBytes, slotBytes, headBytes }] of [
        [units, rowsAt],
        [scales, scalesAt],
      ] as const) {
        const at = pointer + Math.floor(slot / pageSize) * pageBytes + (slot % pageSize) * slotBytes + head * headBytes;
        memory.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at);
      }
    }
  }
}
