/**
 * Rows of keys and values as each storage type holds them: the definition of what an append writes and of what attention reads, on the
 * host. Grouped codes are in groupedCodec.ts; the types and the sizes of their rows in storage.ts. Appending on a device is the work of
 * ops/appendKv, reading there of keyLoader.ts.
 */
import {
  ArgumentError,
  bf16FromF32,
  e4m3ToF32,
  e5m2ToF32,
  f16FromF32,
  f32FromBf16,
  f32FromF16,
  f32ToE4m3,
  f32ToE5m2,
} from "../../tensor/index.ts";
import { largestMagnitude, saturate } from "./codeRounding.ts";
import { decodeGrouped, type EncodeOptions, encodeGrouped, validateEncoding } from "./groupedCodec.ts";
import { type ElementStorage, type PageStorage, rowElements, rowScales, type TiledStorage } from "./storage.ts";

export type { EncodeOptions } from "./groupedCodec.ts";

/** Units of a storage (see `storageBytes`) as they lie in memory. */
export type StorageUnits = Float32Array | Uint16Array | Uint8Array | Int8Array;

/** Rows in a storage type: units [rows, rowElements], scales [rows, rowScales] f32 (without elements where the type has none). */
export interface StoredRows {
  readonly units: StorageUnits;
  readonly scales: Float32Array;
}

/**
 * `values` [rows, channels] in a storage type. All arithmetic is in f32 and rounds to nearest, ties to even; codes saturate. Where
 * numbers share a scale, one that is NaN makes them all decode to NaN, and one that is infinite leaves none of them finite.
 *
 * - f32 and bf16 keep infinities; f16 and the 8-bit floats saturate at 65504, 448 and 57344, and keep NaN.
 * - "i8": the scale is h = max |x| of the row, code = round(x * (127.5 / h)) within -128 to 127. JAX paged_attention/quantization_utils.
 * - grouped: scale = max(max - min, smallest) / (2^bits - 1), zero = round(-min / scale) within the codes, code = round(x / scale) + zero.
 *   min and max are of the group and of 0, and smallest is 2^-100; with the range of the values alone, of the group, and 1e-5.
 *   Symmetric: scale = max(max |x|, 1e-5) / (2^(bits - 1) - 1), zero = 2^(bits - 1). The last two are Palu's quantize_tensor (arXiv
 *   2407.21118).
 * - tiled: the scale is max(max |x| / 448, 1e-4) rounded up to a power of two, code = e4m3(x / scale). FlashMLA's quantize_k_cache.
 *
 * Throws ArgumentError if `values` is not a whole number of rows, or for options that are out of range.
 */
export function encodeRows(
  storage: PageStorage,
  values: ArrayLike<number>,
  channels: number,
  options: EncodeOptions = {},
): StoredRows {
  validateEncoding(options);
  const numRows = countRows("values", values.length, channels);
  const x = Float32Array.from(values);
  if (typeof storage === "string" && storage !== "i8") {
    return { units: elementCodecs[storage].encode(x), scales: new Float32Array(0) };
  }
  const unitsPerRow = rowElements(storage, channels);
  const scalesPerRow = rowScales(storage, channels);
  const bytes = new Uint8Array(numRows * unitsPerRow);
  const scales = new Float32Array(numRows * scalesPerRow);
  for (let row = 0; row < numRows; row++) {
    const from = x.subarray(row * channels, (row + 1) * channels);
    const to = bytes.subarray(row * unitsPerRow, (row + 1) * unitsPerRow);
    const rowOfScales = scales.subarray(row * scalesPerRow, (row + 1) * scalesPerRow);
    if (storage === "i8") encodeInt8(from, to, rowOfScales);
    else if (storage.kind === "grouped") encodeGrouped(storage, from, to, rowOfScales, options);
    else encodeTiled(storage, from, to, rowOfScales);
  }
  return { units: storage === "i8" ? new Int8Array(bytes.buffer) : bytes, scales };
}

/** The numbers of stored rows, [rows, channels]. Throws ArgumentError if units or scales are not those of whole rows. */
export function decodeRows(storage: PageStorage, { units, scales }: StoredRows, channels: number): Float32Array {
  const unitsPerRow = rowElements(storage, channels);
  const numRows = countRows("units", units.length, unitsPerRow);
  if (typeof storage === "string" && storage !== "i8") return elementCodecs[storage].decode(units);
  const scalesPerRow = rowScales(storage, channels);
  if (scales.length !== numRows * scalesPerRow) {
    throw new ArgumentError(
      `scales must have ${scalesPerRow} entries for each of ${numRows} rows, got ${scales.length}`,
    );
  }
  const values = new Float32Array(numRows * channels);
  for (let row = 0; row < numRows; row++) {
    const codes = units.subarray(row * unitsPerRow, (row + 1) * unitsPerRow);
    const rowOfScales = scales.subarray(row * scalesPerRow, (row + 1) * scalesPerRow);
    const to = values.subarray(row * channels, (row + 1) * channels);
    if (storage === "i8") decodeInt8(codes, rowOfScales, to);
    else if (storage.kind === "grouped") decodeGrouped(storage, codes, rowOfScales, to);
    else decodeTiled(storage, codes, rowOfScales, to);
  }
  return values;
}

interface ElementCodec {
  readonly encode: (values: Float32Array) => StorageUnits;
  readonly decode: (units: ArrayLike<number>) => Float32Array;
}

const LARGEST_F16 = 65504;

const elementCodecs: Readonly<Record<ElementStorage, ElementCodec>> = {
  f32: { encode: (values) => values, decode: (units) => Float32Array.from(units) },
  f16: {
    encode: (values) => f16FromF32(values.map((value) => Math.min(Math.max(value, -LARGEST_F16), LARGEST_F16))),
    decode: f32FromF16,
  },
  bf16: { encode: bf16FromF32, decode: f32FromBf16 },
  f8e4m3: {
    encode: (values) => Uint8Array.from(values, f32ToE4m3),
    decode: (units) => Float32Array.from(units, e4m3ToF32),
  },
  f8e5m2: {
    encode: (values) => Uint8Array.from(values, f32ToE5m2),
    decode: (units) => Float32Array.from(units, e5m2ToF32),
  },
};

function encodeInt8(x: Float32Array, codes: Uint8Array, scales: Float32Array): void {
  const largest = largestMagnitude(x);
  const factor = Math.fround(127.5 / largest);
  scales[0] = largest;
  // A row of zeros has factor infinity, and code NaN becomes 0.
  for (let d = 0; d < x.length; d++) codes[d] = saturate(Math.fround(x[d] * factor), -128, 127);
}

function decodeInt8(codes: ArrayLike<number>, scales: ArrayLike<number>, x: Float32Array): void {
  for (let d = 0; d < x.length; d++) x[d] = (codes[d] * scales[0]) / 127.5;
}

function encodeTiled({ tile }: TiledStorage, x: Float32Array, codes: Uint8Array, scales: Float32Array): void {
  for (let begin = 0, t = 0; begin < x.length; begin += tile, t++) {
    const values = x.subarray(begin, begin + tile);
    const scale = powerOfTwoAbove(Math.max(Math.fround(largestMagnitude(values) / 448), Math.fround(1e-4)));
    scales[t] = scale;
    // Dividing by a power of two is exact here: the scale is at least 2^-13.
    for (let i = 0; i < values.length; i++) codes[begin + i] = f32ToE4m3(values[i] / scale);
  }
}

function decodeTiled(
  { tile }: TiledStorage,
  codes: ArrayLike<number>,
  scales: ArrayLike<number>,
  x: Float32Array,
): void {
  for (let d = 0; d < x.length; d++) x[d] = e4m3ToF32(codes[d]) * scales[Math.floor(d / tile)];
}

/** The smallest power of two that is not below a normal f32; NaN and infinity as they are. */
function powerOfTwoAbove(value: number): number {
  if (!Number.isFinite(value)) return value;
  let power = 2 ** Math.floor(Math.log2(value));
  while (power < value) power *= 2;
  return power;
}

function countRows(name: string, length: number, rowLength: number): number {
  if (rowLength > 0 && length % rowLength === 0) return length / rowLength;
  throw new ArgumentError(`${name} must be whole rows of ${rowLength}, got ${length} elements`);
}
