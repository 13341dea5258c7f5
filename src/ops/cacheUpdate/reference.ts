/** The update of a cache by its definition: slices copied one row at a time, what is not of the cache's type encoded by the host's codec. */
import { checkPages, headRows, type KvPages } from "../appendKv/pages.ts";
import { appendRows } from "../appendKv/reference.ts";
import { storageBytes } from "../attention/storage.ts";
import { checkSlices, type KvCacheUpdateSpec } from "./contract.ts";

/**
 * Writes the slices of newKv (f32 numbers, or rows as the cache has them) to where `cache` has its slots in `memory`, changed in place.
 * Throws ArgumentError naming the slice that breaks a rule.
 */
export function kvCacheUpdate(
  memory: Uint8Array,
  spec: KvCacheUpdateSpec,
  newKv: Float32Array | Uint16Array | Uint8Array,
  slices: ArrayLike<number>,
  numSlices: number,
  cache: KvPages,
): void {
  const { numHeads, headDim, storage, source = "f32", encoding } = spec;
  const width = numHeads * headDim;
  const rows = { storage, numHeads, channels: headDim, encoding };
  const checked = checkPages("cache", headRows(storage, numHeads, headDim), cache);
  checkSlices(slices, numSlices, { ...checked, numTokens: newKv.length / width });
  const capacity = slices.length / 3;
  for (let i = 0; i < numSlices; i++) {
    const [cacheStart, newStart, length] = [slices[i], slices[capacity + i], slices[2 * capacity + i]];
    for (let j = 0; j < length; j++) {
      const slot = cacheStart + j;
      const row = newKv.slice((newStart + j) * width, (newStart + j + 1) * width);
      if (source === "f32") {
        appendRows(memory, { ...rows, values: Float32Array.from(row) }, [slot], cache);
        continue;
      }
      const bytes = new Uint8Array(row.buffer);
      const headBytes = headDim * storageBytes(source);
      for (let head = 0; head < numHeads; head++) {
        const at =
          checked.pointer +
          Math.floor(slot / checked.pageSize) * checked.pageBytes +
          (slot % checked.pageSize) * checked.slotBytes +
          head * checked.headBytes;
        memory.set(bytes.subarray(head * headBytes, (head + 1) * headBytes), at);
      }
    }
  }
}
