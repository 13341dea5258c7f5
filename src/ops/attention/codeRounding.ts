/** How the codecs of stored rows round: to nearest, ties to even, and saturating. */

/** 0 for no numbers; NaN if one of them is. */
export function largestMagnitude(x: Float32Array): number {
  return x.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
}

/** Rounded and saturated; 0 for NaN. */
export function saturate(value: number, low: number, high: number): number {
  return Number.isNaN(value) ? 0 : Math.min(Math.max(roundHalfEven(value), low), high);
}

/** The nearest whole number, of two the even one. */
export function roundHalfEven(value: number): number {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 === 0 ? down : down + 1;
}
