/**
 * Functions composed from the operations of the kernel language, so that every back end computes the same bits up to fusing:
 * exponentials, logarithm, tanh, and conversions of 16-bit and 8-bit floats. Vectors; `scalar` lifts one to a single number.
 * Polynomials after Moshier's Cephes library (single precision).
 */

import type { KernelBuilder } from "./builder.ts";
import type { Value } from "./value.ts";

type Vector = Value<"f32v">;

/** Applies a vector function to one number. */
export function scalar(k: KernelBuilder, f: (k: KernelBuilder, x: Vector) => Vector, x: Value<"f32">): Value<"f32"> {
  return k.let(f(k, k.splat(x)).lane(0));
}

function polynomial(k: KernelBuilder, x: Vector, coefficients: readonly number[]): Vector {
  const [first, ...rest] = coefficients;
  let sum = k.all("f32v", first);
  for (const coefficient of rest) sum = sum.fma(x, k.all("f32v", coefficient));
  return k.let(sum);
}

/** 2^x within 2 units in the last place. 0 for x below -126.5 and +inf from 127.5 on, where f32 would still reach a little further. */
export function exp2(k: KernelBuilder, x: Vector): Vector {
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits, from where a shift puts it into the exponent.
  const rounder = 1.5 * 2 ** 23;
  const clamped = k.let(x.max(-127).min(128));
  const shifted = k.let(clamped.add(rounder));
  const fraction = k.let(clamped.sub(shifted.sub(rounder)));
  const power = polynomial(
    k,
    fraction,
    [
      1.5353361883195e-4, 1.339887440266574e-3, 9.61843735767464e-3, 5.550332471162809e-2, 2.402264791363012e-1,
      6.931472028550421e-1, 1,
    ],
  );
  return k.let(power.mul(shifted.as("i32v").add(127).shl(23).as("f32v")));
}

/** e^x; the relative error is at most 6e-8 (|x| + 2). Ends as `exp2` does: 0 below -87.68, +inf from 88.38 on. */
export function exp(k: KernelBuilder, x: Vector): Vector {
  return exp2(k, x.mul(Math.LOG2E));
}

/** 1 / (1 + e^-x), absolute error below 1.2e-7. */
export function sigmoid(k: KernelBuilder, x: Vector): Vector {
  return k.let(k.all("f32v", 1).div(exp(k, x.neg()).add(1)));
}

/** tanh x, absolute error below 2e-7 and relative error below 4e-7; saturates without overflow. -0 becomes 0. */
export function tanh(k: KernelBuilder, x: Vector): Vector {
  const v = k.let(x);
  const far = k.let(
    k.all("f32v", 1).sub(
      k.all("f32v", 2).div(
        exp2(
          k,
          v
            .min(20)
            .max(-20)
            .mul(2 * Math.LOG2E),
        ).add(1),
      ),
    ),
  );
  const square = k.let(v.mul(v));
  const series = polynomial(
    k,
    square,
    [-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1],
  );
  const near = k.let(v.fma(series.mul(square), v));
  return k.let(k.select(v.abs().lt(0.625), near, far));
}

/** ln x for normal x > 0 within 2 units in the last place, or 6e-8 near 1; for 0 it gives about -88, callers guard. */
export function log(k: KernelBuilder, x: Vector): Vector {
  const bits = k.let(x.as("i32v"));
  const mantissa = k.let(bits.and(0x7fffff).or(0x3f800000).as("f32v"));
  const isHigh = k.let(mantissa.gt(Math.SQRT2));
  const exponent = k.let(bits.shrU(23).sub(127).sub(isHigh).toF32());
  const z = k.let(k.select(isHigh, mantissa.mul(0.5), mantissa).sub(1));
  const square = k.let(z.mul(z));
  const series = polynomial(
    k,
    z,
    [
      7.0376836292e-2, -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
      2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    ],
  );
  const tail = k.let(series.mul(z).mul(square).fma(1, exponent.mul(-2.1219444e-4)).sub(square.mul(0.5)));
  return k.let(z.add(tail).add(exponent.mul(0.693359375)));
}

/** IEEE half-precision bits (0..65535 in each lane) to f32, subnormals, infinities and NaN included. */
export function f16ToF32(k: KernelBuilder, half: Value<"i32v">): Vector {
  const bits = k.let(half);
  const magnitude = k.let(bits.and(0x7fff));
  const rebias = 112 << 23;
  const normal = magnitude.shl(13).add(k.select(magnitude.ge(0x7c00), k.all("i32v", 2 * rebias), rebias));
  const subnormal = magnitude
    .toF32()
    .mul(2 ** -24)
    .as("i32v");
  return k.let(k.select(magnitude.lt(0x400), subnormal, normal).or(bits.and(0x8000).shl(16)).as("f32v"));
}

/** The same for finite values only: one selection less. Scales of weights are finite. */
export function finiteF16ToF32(k: KernelBuilder, half: Value<"i32v">): Vector {
  const bits = k.let(half);
  const magnitude = k.let(bits.and(0x7fff));
  const subnormal = magnitude
    .toF32()
    .mul(2 ** -24)
    .as("i32v");
  const normal = magnitude.shl(13).add(112 << 23);
  return k.let(k.select(magnitude.lt(0x400), subnormal, normal).or(bits.and(0x8000).shl(16)).as("f32v"));
}

/** f32 to half-precision bits, to nearest even; overflow gives infinity, NaN the quiet NaN 0x7e00. */
export function f32ToF16(k: KernelBuilder, x: Vector): Value<"i32v"> {
  const bits = k.let(x.as("i32v"));
  const magnitude = k.let(bits.and(0x7fffffff));
  // Adding 0.5 shifts a subnormal's mantissa to the end of the word, rounded by the adder itself.
  const subnormal = magnitude.as("f32v").add(0.5).as("i32v").sub(0x3f000000);
  const isOdd = magnitude.shrU(13).and(1);
  const normal = magnitude
    .sub(112 << 23)
    .add(0xfff)
    .add(isOdd)
    .shrU(13);
  const finite = k.let(k.select(magnitude.lt(113 << 23), subnormal, normal));
  const capped = k.let(k.select(magnitude.ge(0x477ff000), k.all("i32v", 0x7c00), finite));
  const half = k.select(magnitude.gt(0x7f800000), k.all("i32v", 0x7e00), capped);
  return k.let(half.or(bits.shrU(16).and(0x8000)));
}

/** bfloat16 bits to f32. */
export function bf16ToF32(half: Value<"i32v">): Vector {
  return half.shl(16).as("f32v");
}

/** f32 to bfloat16 bits, to nearest even; overflow gives infinity, NaN a quiet NaN with the bits that fit. */
export function f32ToBf16(k: KernelBuilder, x: Vector): Value<"i32v"> {
  const bits = k.let(x.as("i32v"));
  const isNoNumber = bits.and(0x7fffffff).gt(0x7f800000);
  const isOdd = bits.shrU(16).and(1);
  return k.let(k.select(isNoNumber, bits.shrU(16).or(0x40), bits.add(0x7fff).add(isOdd).shrU(16)));
}

/** What a format of 8 bits keeps of an f32: where its bits begin, and the codes at both ends. */
interface ByteFloat {
  readonly mantissaBits: number;
  readonly bias: number;
  readonly largest: number;
  readonly nan: number;
}

function f32ToByteFloat(k: KernelBuilder, x: Vector, { mantissaBits, bias, largest, nan }: ByteFloat): Value<"i32v"> {
  const shift = 23 - mantissaBits;
  const bits = k.let(x.as("i32v"));
  const magnitude = k.let(bits.and(0x7fffffff));
  const capped = k.let(magnitude.min(k.all("i32v", f32Bits(largest))));
  // A number with the place value of the smallest subnormal at the end of its word: the adder rounds there.
  const anchor = 2 ** (24 - bias - mantissaBits);
  const subnormal = capped.as("f32v").add(anchor).as("i32v").sub(f32Bits(anchor));
  const isOdd = capped.shrU(shift).and(1);
  const rebias = (127 - bias) << 23;
  const normal = capped
    .add((1 << (shift - 1)) - 1 - rebias)
    .add(isOdd)
    .shrU(shift);
  const code = k.select(capped.lt(rebias + (1 << 23)), subnormal, normal);
  return k.let(k.select(magnitude.gt(0x7f800000), k.all("i32v", nan), code).or(bits.shrU(24).and(0x80)));
}

/** f32 to e4m3fn codes (0..255 in each lane), to nearest even; overflow and infinities saturate at 448, NaN becomes 0x7f with its sign. */
export function f32ToE4m3(k: KernelBuilder, x: Vector): Value<"i32v"> {
  return f32ToByteFloat(k, x, { mantissaBits: 3, bias: 7, largest: 448, nan: 0x7f });
}

/** f32 to e5m2 codes (0..255 in each lane), to nearest even; overflow and infinities saturate at 57344, NaN becomes 0x7e with its sign. */
export function f32ToE5m2(k: KernelBuilder, x: Vector): Value<"i32v"> {
  return f32ToByteFloat(k, x, { mantissaBits: 2, bias: 15, largest: 57344, nan: 0x7e });
}

function f32Bits(value: number): number {
  return new Int32Array(Float32Array.of(value).buffer)[0];
}
