/**
 * The counter-based generator behind every golden input: element i of the tensor with seed s depends on (s, i) alone.
 * Python makes the same numbers bit for bit; the test vectors are in rng.test.ts.
 */

function mix(x: number): number {
  x ^= x >>> 16;
  x = Math.imul(x, 0x7feb352d);
  x ^= x >>> 15;
  x = Math.imul(x, 0x846ca68b);
  return x ^ (x >>> 16);
}

/** Uniform 32 bits for each counter under a seed. */
export function hash(seed: number, counter: number): number {
  return mix(mix(counter) ^ mix(seed)) >>> 0;
}

/** n float32 values of mean 0 and standard deviation `std`: the sum of four uniforms, bounded by 3.47 std. */
export function normal(seed: number, n: number, std: number): Float32Array {
  const values = new Float32Array(n);
  const base = mix(seed);
  const scale = std * 1.7320508075688772;
  for (let i = 0; i < n; i++) {
    const first = mix(mix(2 * i) ^ base);
    const second = mix(mix(2 * i + 1) ^ base);
    const total = (first >>> 16) + (first & 0xffff) + (second >>> 16) + (second & 0xffff);
    values[i] = ((total - 131070) / 65536) * scale;
  }
  return values;
}

/** n integers in [low, high). */
export function randint(seed: number, n: number, low: number, high: number): Int32Array {
  return Int32Array.from({ length: n }, (_, i) => low + Math.floor((hash(seed, i) * (high - low)) / 4294967296));
}

/** A permutation of 0..n-1: Fisher-Yates from the end, one hash a step. */
export function permutation(seed: number, n: number): Int32Array {
  const p = Int32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor((hash(seed, i) * (i + 1)) / 4294967296);
    [p[i], p[j]] = [p[j], p[i]];
  }
  return p;
}
