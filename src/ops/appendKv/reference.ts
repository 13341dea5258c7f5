/** The append by its definition: a scatter of rows, on contiguous pages [slot][kv head][head dim]. */
import { f16ToF32, f32ToF16 } from "../../tensor/index.ts";
import { type AppendKvSpec, LARGEST_F16 } from "./contract.ts";

/** The value a page of this storage holds after `x` (an f32 value) was written to it. */
export function storedValue(storage: AppendKvSpec["storage"], x: number): number {
  if (storage === "f32") return Math.fround(x);
  return f16ToF32(f32ToF16(Math.min(Math.max(x, -LARGEST_F16), LARGEST_F16)));
}

/**
 * Writes x ([tokens, numKvHeads * headDim]) to `pages` ([slots, numKvHeads * headDim], changed in place) by slot; -1 writes nothing.
 * Called once for the keys and once for the values.
 */
export function appendKv(
  spec: AppendKvSpec,
  x: ArrayLike<number>,
  slotMapping: ArrayLike<number>,
  pages: Float32Array | Float64Array,
): void {
  const length = spec.numKvHeads * spec.headDim;
  for (let token = 0; token * length < x.length; token++) {
    const slot = slotMapping[token];
    if (slot === -1) continue;
    for (let i = 0; i < length; i++) pages[slot * length + i] = storedValue(spec.storage, x[token * length + i]);
  }
}
