/**
 * Conversions between float32 and the 16- and 8-bit float formats, as bit patterns. Rounding is to nearest, ties to even. Plain scalar
 * functions and array forms of the 16-bit ones; packed or vectorised conversions belong to the kernels.
 */

const floatWord = new Float32Array(1);
const bitsWord = new Uint32Array(floatWord.buffer);

function bitsOf(value: number): number {
  floatWord[0] = value;
  return bitsWord[0];
}

function floatOf(bits: number): number {
  bitsWord[0] = bits;
  return floatWord[0];
}

/** Layout of a small float format: sign, `exponentBits`, `mantissaBits`. */
interface SmallFloat {
  readonly mantissaBits: number;
  readonly bias: number;
  readonly signBit: number;
}

const F16: SmallFloat = { mantissaBits: 10, bias: 15, signBit: 0x8000 };
const E4M3: SmallFloat = { mantissaBits: 3, bias: 7, signBit: 0x80 };
const E5M2: SmallFloat = { mantissaBits: 2, bias: 15, signBit: 0x80 };

/**
 * Magnitude bits of a finite float32 magnitude (given as bits) in a smaller format, as if that format had no largest exponent: the carry of
 * the rounding runs into the exponent, so that a result above the largest finite code means overflow.
 */
function roundMagnitude(format: SmallFloat, magnitude: number): number {
  const exponent = (magnitude >>> 23) - 127 + format.bias;
  if (exponent >= 1) {
    const shift = 23 - format.mantissaBits;
    const rebased = magnitude - ((127 - format.bias) << 23);
    return (rebased + (1 << (shift - 1)) - 1 + ((rebased >>> shift) & 1)) >>> shift;
  }
  // Subnormal in the small format: the implied bit becomes part of the mantissa and everything moves right.
  const shift = 23 - format.mantissaBits + 1 - exponent;
  if (shift > 24) return 0; // below half of the smallest subnormal
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  return (mantissa + (1 << (shift - 1)) - 1 + ((mantissa >>> shift) & 1)) >>> shift;
}

/** Value of the code `code` of a small format whose exponent field is not the one reserved for infinities and NaN. */
function expand(format: SmallFloat, code: number): number {
  const magnitude = code & (format.signBit - 1);
  const exponent = magnitude >>> format.mantissaBits;
  const mantissa = magnitude & ((1 << format.mantissaBits) - 1);
  const value =
    exponent === 0
      ? mantissa * 2 ** (1 - format.bias - format.mantissaBits)
      : (1 + mantissa * 2 ** -format.mantissaBits) * 2 ** (exponent - format.bias);
  return code & format.signBit ? -value : value;
}

/** IEEE binary16 bits of `value` (rounded to float32 first). Overflow becomes infinity; NaN stays NaN. */
export function f32ToF16(value: number): number {
  const bits = bitsOf(value);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude === 0x7f800000) return sign | 0x7c00;
  return sign | Math.min(roundMagnitude(F16, magnitude), 0x7c00);
}

// All 65,536 values, made at the first use: dequantisation reads a scale for each block.
let f16Values: Float32Array | undefined;

function makeF16Values(): Float32Array {
  const values = new Float32Array(0x10000);
  for (let code = 0; code < values.length; code++) {
    const magnitude = code & 0x7fff;
    if (magnitude < 0x7c00) values[code] = expand(F16, code);
    else if (magnitude === 0x7c00) values[code] = code & 0x8000 ? -Infinity : Infinity;
    else values[code] = Number.NaN;
  }
  return values;
}

/** Value of the IEEE binary16 bits `code` (0 to 65535). Exact. */
export function f16ToF32(code: number): number {
  f16Values ??= makeF16Values();
  return f16Values[code];
}

/** bfloat16 bits of `value` (rounded to float32 first). Overflow becomes infinity; NaN stays NaN. */
export function f32ToBf16(value: number): number {
  const bits = bitsOf(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return ((bits >>> 16) | 0x40) & 0xffff; // quiet NaN: the payload bits could all be cut off
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Value of the bfloat16 bits `code` (0 to 65535). Exact. */
export function bf16ToF32(code: number): number {
  return floatOf(code << 16);
}

/** e4m3fn code of `value`. Everything beyond 448, infinities too, saturates to 448 with its sign; NaN stays NaN (0x7f or 0xff). OCP 8-bit float. */
export function f32ToE4m3(value: number): number {
  const bits = bitsOf(value);
  const sign = (bits >>> 24) & 0x80;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7f;
  return sign | Math.min(roundMagnitude(E4M3, magnitude), 0x7e);
}

/** Value of the e4m3fn code `code` (0 to 255). */
export function e4m3ToF32(code: number): number {
  return (code & 0x7f) === 0x7f ? Number.NaN : expand(E4M3, code);
}

/** e5m2 code of `value`. Everything beyond 57344, infinities too, saturates to 57344 with its sign; NaN stays NaN. OCP 8-bit float. */
export function f32ToE5m2(value: number): number {
  const bits = bitsOf(value);
  const sign = (bits >>> 24) & 0x80;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e;
  return sign | Math.min(roundMagnitude(E5M2, magnitude), 0x7b);
}

/** Value of the e5m2 code `code` (0 to 255). 0x7c and 0xfc are infinities, the codes above them NaN. */
export function e5m2ToF32(code: number): number {
  const magnitude = code & 0x7f;
  if (magnitude < 0x7c) return expand(E5M2, code);
  if (magnitude > 0x7c) return Number.NaN;
  return code & 0x80 ? -Infinity : Infinity;
}

/** binary16 bits of each value. */
export function f16FromF32(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const codes = new Uint16Array(values.length);
  for (let i = 0; i < codes.length; i++) codes[i] = f32ToF16(values[i]);
  return codes;
}

/** Value of each binary16 code. */
export function f32FromF16(codes: ArrayLike<number>): Float32Array<ArrayBuffer> {
  const values = new Float32Array(codes.length);
  for (let i = 0; i < values.length; i++) values[i] = f16ToF32(codes[i]);
  return values;
}

/** bfloat16 bits of each value. */
export function bf16FromF32(values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const codes = new Uint16Array(values.length);
  for (let i = 0; i < codes.length; i++) codes[i] = f32ToBf16(values[i]);
  return codes;
}

/** Value of each bfloat16 code. */
export function f32FromBf16(codes: ArrayLike<number>): Float32Array<ArrayBuffer> {
  const values = new Float32Array(codes.length);
  for (let i = 0; i < values.length; i++) values[i] = bf16ToF32(codes[i]);
  return values;
}
