/** out[i] = row slots[i] of `rows` [slots, channels], decoded already. */
export function gatherSlots(rows: ArrayLike<number>, channels: number, slots: ArrayLike<number>): Float64Array {
  return Float64Array.from({ length: slots.length * channels }, (_, at) => {
    return rows[slots[Math.floor(at / channels)] * channels + (at % channels)];
  });
}
