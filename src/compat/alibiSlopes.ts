/** The slopes of ALiBi's heads, for callers who have none of their own: FlashInfer computes them where others take them. */

/** The slopes of Press et al. 2021: powers of 2^(-8/n) for the largest power of two n of heads, every other one of twice as many after. */
export function alibiSlopes(numHeads: number): Float32Array {
  const n = 2 ** Math.floor(Math.log2(numHeads));
  return Float32Array.from({ length: numHeads }, (_, h) =>
    h < n ? 2 ** ((-8 * (h + 1)) / n) : 2 ** ((-4 * (2 * (h - n) + 1)) / n),
  );
}
