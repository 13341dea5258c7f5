/**
 * Hadamard matrices by construction: Sylvester's doubling of a small factor, and Paley's two families for the factor, over fields of
 * p or p^2 elements. Sizes without any are blocks of sizes that have one. Nothing is stored as a table.
 */
import { checkPositive } from "../elementwise/rows.ts";

/** How a matrix is made: doublings of a factor, H = Sylvester(2^doublings) (x) factor. */
export interface HadamardFactors {
  /** Order of the factor: 1 or a multiple of 4. */
  readonly factor: number;
  readonly doublings: number;
}

/**
 * The factors of order `n` with the smallest factor that can be built, or undefined where there is none. Orders above 2 must be multiples
 * of 4; of those up to 1,000 this builds all but a few dozen, Palu's unsupported 800, 928 and 992 among them.
 */
export function hadamardFactors(n: number): HadamardFactors | undefined {
  checkPositive("n", n);
  let odd = n;
  let doublings = 0;
  while (odd % 2 === 0) {
    odd /= 2;
    doublings++;
  }
  for (let factor = odd; doublings >= 0; factor *= 2, doublings--) {
    if (factor === 1 || paleyField(factor)) return { factor, doublings };
  }
  return undefined;
}

/**
 * Sizes of the blocks that make up the transform of `n` channels: n itself where a Hadamard matrix can be built, else the largest that fits,
 * and so on.
 */
export function hadamardBlocks(n: number): number[] {
  checkPositive("n", n);
  const blocks: number[] = [];
  for (let rest = n; rest > 0; ) {
    let size = rest;
    while (!hadamardFactors(size)) size--;
    blocks.push(size);
    rest -= size;
  }
  return blocks;
}

/** The signs of a Hadamard matrix of order `n`, [n, n] of 1 and -1; undefined where none can be built. */
export function hadamardSigns(n: number): Int8Array | undefined {
  const factors = hadamardFactors(n);
  if (!factors) return undefined;
  const { factor } = factors;
  const base = factor === 1 ? Int8Array.of(1) : paleySigns(factor);
  const signs = new Int8Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const sylvester = 1 - 2 * (bitCount(Math.floor(i / factor) & Math.floor(j / factor)) & 1);
      signs[i * n + j] = sylvester * base[(i % factor) * factor + (j % factor)];
    }
  }
  return signs;
}

/** The orthonormal transform of `n` channels, [n, n] row-major: block-diagonal where `hadamardBlocks(n)` has several blocks. */
export function hadamardMatrix(n: number): Float64Array {
  const matrix = new Float64Array(n * n);
  let begin = 0;
  for (const size of hadamardBlocks(n)) {
    const signs = hadamardSigns(size);
    if (!signs) throw new Error(`hadamardBlocks gave a block of ${size}, which has no matrix`);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        matrix[(begin + i) * n + begin + j] = signs[i * size + j] / Math.sqrt(size);
      }
    }
    begin += size;
  }
  return matrix;
}

/** A field of p or p^2 elements and which of Paley's constructions it serves. */
interface PaleyField {
  readonly prime: number;
  readonly isSquare: boolean;
  readonly construction: 1 | 2;
}

/** Paley 1933: q + 1 for q = 3 mod 4, and 2 (q + 1) for q = 1 mod 4, q a prime or here also the square of one. */
function paleyField(order: number): PaleyField | undefined {
  if (order % 4 !== 0) return undefined;
  // A square is 1 mod 4, so it serves only the second construction.
  if (isPrime(order - 1)) return { prime: order - 1, isSquare: false, construction: 1 };
  const q = order / 2 - 1;
  if (q % 4 !== 1) return undefined;
  if (isPrime(q)) return { prime: q, isSquare: false, construction: 2 };
  const root = Math.round(Math.sqrt(q));
  return root * root === q && isPrime(root) ? { prime: root, isSquare: true, construction: 2 } : undefined;
}

function paleySigns(order: number): Int8Array {
  const field = paleyField(order);
  if (!field) throw new Error(`there is no Paley matrix of order ${order}`);
  const residues = jacobsthal(field);
  const size = Math.sqrt(residues.length) + 1;
  // The residues with a border: skew-symmetric for the first construction, symmetric for the second, zeros on the diagonal.
  const bordered = (i: number, j: number): number => {
    if (i === j) return 0;
    if (i === 0) return 1;
    if (j === 0) return field.construction === 1 ? -1 : 1;
    return residues[(i - 1) * (size - 1) + j - 1];
  };
  const signs = new Int8Array(order * order);
  for (let i = 0; i < order; i++) {
    for (let j = 0; j < order; j++) {
      if (field.construction === 1) {
        signs[i * order + j] = i === j ? 1 : bordered(i, j);
      } else {
        const entry = bordered(i >> 1, j >> 1);
        const [a, b] = [i & 1, j & 1];
        // Every entry becomes two by two: 0 -> [1 -1; -1 -1], s -> s [1 1; 1 -1].
        signs[i * order + j] = entry === 0 ? (a + b === 0 ? 1 : -1) : entry * (a + b === 2 ? -1 : 1);
      }
    }
  }
  return signs;
}

/** Q[i, j] = chi(x_i - x_j): 1 for squares of the field, -1 for the others, 0 for zero. */
function jacobsthal({ prime, isSquare }: PaleyField): Int8Array {
  const q = isSquare ? prime * prime : prime;
  const legendre = new Int8Array(prime).fill(-1);
  legendre[0] = 0;
  for (let x = 1; x < prime; x++) legendre[(x * x) % prime] = 1;
  const nonResidue = legendre.indexOf(-1);
  // In the field of p^2 elements a + b sqrt(c), an element is a square exactly if its norm a^2 - c b^2 is one modulo p.
  const character = (i: number, j: number): number => {
    if (!isSquare) return legendre[(i - j + prime) % prime];
    const a = ((i % prime) - (j % prime) + prime) % prime;
    const b = Math.floor(i / prime) - Math.floor(j / prime) + prime;
    const norm = (a * a - nonResidue * b * b) % prime;
    return legendre[(norm + prime) % prime];
  };
  return Int8Array.from({ length: q * q }, (_, at) => character(Math.floor(at / q), at % q));
}

function isPrime(n: number): boolean {
  if (n < 2) return false;
  for (let d = 2; d * d <= n; d++) if (n % d === 0) return false;
  return true;
}

function bitCount(n: number): number {
  let count = 0;
  for (let rest = n; rest !== 0; rest &= rest - 1) count++;
  return count;
}
