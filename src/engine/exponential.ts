/**
 * exp for the weights of tokens: arguments from -60 to 0, three times as fast as Math.exp, which is a call out of the compiled loop.
 * A table of sixteenths of powers of two and a polynomial between them; the relative error is below 1e-14.
 */

/** Weights below e^-60 of the largest do not change a double's sum over any vocabulary, nor can a 53-bit draw reach them. */
export const LOWEST_EXPONENT = -60;

/** 2^(-i / 16), down to e^-60. */
const POWERS = Float64Array.from(
  { length: Math.ceil((-LOWEST_EXPONENT * 16) / Math.LN2) + 2 },
  (_, i) => 2 ** (-i / 16),
);
const STEP = Math.LN2 / 16;
const STEPS_PER_UNIT = 16 / Math.LN2;

/** exp(x) for x from LOWEST_EXPONENT to 0; meaningless outside. */
export function negativeExp(x: number): number {
  const n = (0.5 - x * STEPS_PER_UNIT) | 0;
  const d = x + n * STEP;
  return POWERS[n] * (1 + d * (1 + d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d * (1 / 120 + d * (1 / 720)))))));
}
