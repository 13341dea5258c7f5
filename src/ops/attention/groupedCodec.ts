/**
 * Rows of grouped codes, on the host: how the scale and the zero point of a group are chosen, and codes of a few bits in a row's stream of
 * bytes. The other storage types are in storageCodec.ts.
 */
import { ArgumentError } from "../../tensor/index.ts";
import { largestMagnitude, roundHalfEven, saturate } from "./codeRounding.ts";
import type { GroupedStorage } from "./storage.ts";

/** How the scale of grouped codes is chosen; the other types leave no choice. */
export interface EncodeOptions {
  /**
   * Which numbers the codes of a group reach.
   *
   * - "withZero" (default): from the smallest to the largest of its numbers, and 0. Every number is kept to half a step.
   * - "values": from the smallest to the largest, Palu's choice. The zero point is a code all the same, so that a group needs numbers on
   *   both sides of 0: one whose numbers are all positive (all negative) saturates at max - min, and equal numbers come back near 0.
   * - "symmetric": as far on both sides of 0 as the largest magnitude.
   */
  readonly range?: "withZero" | "values" | "symmetric";
  /** Share of the range that is kept, from 0 to 1; numbers beyond it saturate. 1 by default. */
  readonly clipRatio?: number;
}

/** Throws ArgumentError naming the option that is out of range. */
export function validateEncoding({ range = "withZero", clipRatio = 1 }: EncodeOptions): void {
  if (!["withZero", "values", "symmetric"].includes(range)) {
    throw new ArgumentError(`encoding.range must be withZero, values or symmetric, got ${range}`);
  }
  if (!(clipRatio >= 0 && clipRatio <= 1)) {
    throw new ArgumentError(`encoding.clipRatio must be a number from 0 to 1, got ${clipRatio}`);
  }
}

/** Writes the codes of the row `x`, and scale and zero point of each of its groups. */
export function encodeGrouped(
  { bits, groupSize }: GroupedStorage,
  x: Float32Array,
  codes: Uint8Array,
  scales: Float32Array,
  options: EncodeOptions,
): void {
  const largestCode = 2 ** bits - 1;
  const step = groupSize === 0 ? x.length : groupSize;
  for (let begin = 0, group = 0; begin < x.length; begin += step, group++) {
    const values = x.subarray(begin, begin + step);
    const { scale, zero } = groupScale(values, bits, options);
    scales[2 * group] = scale;
    scales[2 * group + 1] = zero;
    for (let i = 0; i < values.length; i++) {
      const steps = roundHalfEven(Math.fround(values[i] / scale));
      writeCode(codes, begin + i, bits, saturate(steps + zero, 0, largestCode));
    }
  }
}

function groupScale(
  values: Float32Array,
  bits: number,
  { range = "withZero", clipRatio = 1 }: EncodeOptions,
): { readonly scale: number; readonly zero: number } {
  const clip = Math.fround(clipRatio);
  const smallest = smallestRange(range);
  if (range === "symmetric") {
    const reach = Math.fround(Math.max(largestMagnitude(values), smallest) * clip);
    return { scale: Math.fround(reach / (2 ** (bits - 1) - 1)), zero: 2 ** (bits - 1) };
  }
  const largestCode = 2 ** bits - 1;
  const numbers = range === "withZero" ? [0, ...values] : [...values];
  const max = Math.fround(numbers.reduce((a, b) => Math.max(a, b)) * clip);
  const min = Math.fround(numbers.reduce((a, b) => Math.min(a, b)) * clip);
  const scale = Math.fround(Math.max(Math.fround(max - min), smallest) / largestCode);
  return { scale, zero: saturate(Math.fround(-min / scale), 0, largestCode) };
}

/**
 * The least range of a group, which keeps its scale away from 0. Palu's two have 1e-5; where 0 is in the range, only a group of zeros and
 * numbers that f32 has few bits for need one.
 */
export function smallestRange(range: EncodeOptions["range"] = "withZero"): number {
  return range === "withZero" ? 2 ** -100 : Math.fround(1e-5);
}

/** The numbers of a stored row into `x`. */
export function decodeGrouped(
  { bits, groupSize }: GroupedStorage,
  codes: ArrayLike<number>,
  scales: ArrayLike<number>,
  x: Float32Array,
): void {
  const step = groupSize === 0 ? x.length : groupSize;
  for (let d = 0; d < x.length; d++) {
    const group = Math.floor(d / step);
    x[d] = (readCode(codes, d, bits) - scales[2 * group + 1]) * scales[2 * group];
  }
}

/** Code `index` of a row: `bits` bits of the little-endian stream, from bit index * bits on. */
function readCode(bytes: ArrayLike<number>, index: number, bits: number): number {
  const at = index * bits;
  const byte = at >> 3;
  // A code of 3 bits may reach into the next byte; the row's padding keeps that inside the row where it does.
  const word = bytes[byte] | ((bytes[byte + 1] ?? 0) << 8);
  return (word >> (at & 7)) & (2 ** bits - 1);
}

function writeCode(bytes: Uint8Array, index: number, bits: number, value: number): void {
  const at = index * bits;
  const byte = at >> 3;
  const word = value << (at & 7);
  bytes[byte] |= word;
  if (word > 0xff) bytes[byte + 1] |= word >> 8;
}
