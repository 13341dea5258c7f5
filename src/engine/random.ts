/**
 * A counter-based random number generator: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
 * It has no state. The number for (seed, sample, position) is the same however often, in whatever order and beside whatever else it
 * is asked for, which is what makes a seed repeatable under load and after a preemption.
 */

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;
const NUM_ROUNDS = 10;

/** Encrypts the four 32-bit words of `counter` in place under a 64-bit key. */
export function philox4x32(counter: Uint32Array, keyLow: number, keyHigh: number): void {
  let [c0, c1, c2, c3] = counter;
  let k0 = keyLow;
  let k1 = keyHigh;
  for (let round = 0; round < NUM_ROUNDS; round++) {
    const high0 = multiplyHigh(MULTIPLIER_0, c0);
    const low0 = Math.imul(MULTIPLIER_0, c0);
    const high1 = multiplyHigh(MULTIPLIER_1, c2);
    const low1 = Math.imul(MULTIPLIER_1, c2);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = low1;
    c3 = low0;
    k0 = (k0 + WEYL_0) | 0;
    k1 = (k1 + WEYL_1) | 0;
  }
  counter[0] = c0;
  counter[1] = c1;
  counter[2] = c2;
  counter[3] = c3;
}

/** Upper 32 bits of the product of two unsigned 32-bit integers. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  // Each partial product is below 2^32 and the sums below 2^33: exact in a double.
  const carry = aLow * bHigh + (middle % 0x10000);
  return aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000);
}

const counter = new Uint32Array(4);

/**
 * A uniform number in [0, 1) of 53 random bits, a function of its arguments alone.
 * `seed`: an integer from 0 to 2^53 - 1; `sampleIndex` and `position`: integers from 0 to 2^32 - 1.
 */
export function uniformAt(seed: number, sampleIndex: number, position: number): number {
  counter[0] = position;
  counter[1] = sampleIndex;
  counter[2] = 0;
  counter[3] = 0;
  philox4x32(counter, (seed % 0x1_0000_0000) | 0, Math.floor(seed / 0x1_0000_0000));
  return ((counter[0] >>> 5) * 0x400_0000 + (counter[1] >>> 6)) / 0x20_0000_0000_0000;
}

/** A seed for a request that names none. */
export function randomSeed(): number {
  const [low, high] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1f_ffff) * 0x1_0000_0000 + low;
}
