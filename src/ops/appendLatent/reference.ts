/** The append of latents by its definition: each group's row is encoded by the host's codec and put behind that of the group before. */
import { checkPages, type KvPages } from "../appendKv/pages.ts";
import { type PageStorage, rowElements, rowScales } from "../attention/storage.ts";
import { type EncodeOptions, encodeRows } from "../attention/storageCodec.ts";
import { sum } from "./contract.ts";

/** Latents to be stored: [tokens, sum of the ranks]. Keys and values are appended apart. */
export interface LatentsToStore {
  readonly storage: PageStorage;
  /** [groups] */
  readonly ranks: readonly number[];
  readonly values: Float32Array;
  readonly encoding?: EncodeOptions;
}

/** Writes codes and scales to where `pages` has them in `memory`, changed in place. A slot that is none writes nothing. */
export function appendLatent(
  memory: Uint8Array,
  { storage, ranks, values, encoding }: LatentsToStore,
  slotMapping: ArrayLike<number>,
  pages: KvPages,
): void {
  const width = sum(ranks);
  const rows = {
    storage,
    numHeads: 1,
    units: sum(ranks.map((rank) => rowElements(storage, rank))),
    scales: sum(ranks.map((rank) => rowScales(storage, rank))),
  };
  const { numSlots, pageSize, scales: scalesAt, ...rowsAt } = checkPages("pages", rows, pages);
  for (let token = 0; token * width < values.length; token++) {
    const slot = slotMapping[token];
    if (slot < 0 || slot >= numSlots) continue;
    const [page, offset] = [Math.floor(slot / pageSize), slot % pageSize];
    let at = rowsAt.pointer + page * rowsAt.pageBytes + offset * rowsAt.slotBytes;
    let scaleAt = scalesAt.pointer + page * scalesAt.pageBytes + offset * scalesAt.slotBytes;
    let first = token * width;
    for (const rank of ranks) {
      const { units, scales } = encodeRows(storage, values.subarray(first, first + rank), rank, encoding);
      memory.set(new Uint8Array(units.buffer, units.byteOffset, units.byteLength), at);
      memory.set(new Uint8Array(scales.buffer, scales.byteOffset, scales.byteLength), scaleAt);
      at += units.byteLength;
      scaleAt += scales.byteLength;
      first += rank;
    }
  }
}

/** Stores tokens of a window's `latents` ([windows * capacity, sum of the ranks], as they lie there): (window, slot in it, page slot) each. */
export function flushWindow(
  memory: Uint8Array,
  latents: LatentsToStore,
  capacity: number,
  flushes: ArrayLike<number>,
  pages: KvPages,
): void {
  const width = sum(latents.ranks);
  for (let i = 0; i < flushes.length; i += 3) {
    const first = (flushes[i] * capacity + flushes[i + 1]) * width;
    const values = latents.values.subarray(first, first + width);
    appendLatent(memory, { ...latents, values }, [flushes[i + 2]], pages);
  }
}
