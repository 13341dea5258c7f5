/**
 * The complementary error function in float64, and from it the polynomial the kernel uses. Math has no erf; the coefficients are computed
 * here at load, not typed in, so that where they come from can be read.
 */

/** erfc(z) exp(z^2) for z >= 0, to a few units in 1e-15: the power series of erf for small z, the continued fraction for large z. */
export function scaledErfc(z: number): number {
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; n < 80; n++) {
      term *= (2 * z * z) / (2 * n + 1);
      sum += term;
    }
    // erf(z) = 2/sqrt(pi) exp(-z^2) * sum (Abramowitz & Stegun 7.1.6)
    return Math.exp(z * z) - (2 / Math.sqrt(Math.PI)) * sum;
  }
  let tail = z;
  for (let n = 120; n >= 1; n--) tail = z + n / 2 / tail; // Abramowitz & Stegun 7.1.14, from the far end
  return 1 / (Math.sqrt(Math.PI) * tail);
}

/** Phi(x), the distribution function of the standard normal distribution. */
export function normalCdf(x: number): number {
  const z = Math.abs(x) / Math.SQRT2;
  const tail = 0.5 * scaledErfc(z) * Math.exp(-z * z);
  return x < 0 ? tail : 1 - tail;
}

/**
 * Coefficients c, lowest power first, with erfc(z) exp(z^2) = t * sum_k c[k] (2t - 1)^k for t = 1 / (1 + z/2) and every z >= 0: the interpolant at
 * Chebyshev points, relative error below 1e-8 for degree 10, so that f32 rounding (2e-7) is what remains.
 */
export function scaledErfcCoefficients(degree = 10): number[] {
  const numNodes = degree + 1;
  const angles = Array.from({ length: numNodes }, (_, i) => (Math.PI * (i + 0.5)) / numNodes);
  const values = angles.map((angle) => {
    const t = (1 + Math.cos(angle)) / 2;
    return scaledErfc(2 / t - 2) / t;
  });
  // Chebyshev coefficients by the discrete cosine transform, then T_k written out in powers: T_{k+1} = 2 s T_k - T_{k-1}.
  const powers = new Array<number>(numNodes).fill(0);
  let previous = [0];
  let current = [1];
  for (let k = 0; k < numNodes; k++) {
    const dot = values.reduce((sum, value, i) => sum + value * Math.cos(k * angles[i]), 0);
    const coefficient = ((k === 0 ? 1 : 2) * dot) / numNodes;
    current.forEach((c, power) => {
      powers[power] += coefficient * c;
    });
    const doubled = [0, ...current.map((c) => (k === 0 ? c : 2 * c))];
    const next = doubled.map((c, power) => c - (k === 0 ? 0 : (previous[power] ?? 0)));
    previous = current;
    current = next;
  }
  return powers;
}
