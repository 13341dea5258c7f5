/**
 * Kernel parts: the two products of attention on one block of keys, with sums held in registers. Each sum runs in an order that depends
 * on nothing but the channels and the keys, never on how many rows share a tile.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";

type Address = Value<"i32">;

/** Bytes of one row of scores: a block of keys. */
const scoreRowBytes = 32 * 4;

/**
 * Bytes from one row of queries, keys, values or sums in scratch to the next: a cache line more than the row, because columns of rows that
 * are a power of two apart would all fall into the same few places of the first-level cache.
 */
export function rowPitch(headDim: number): number {
  return headDim * 4 + 64;
}

/**
 * scores[row][j] = dot(q[row], keys[j]) for j from `begin` up to `end`, rounded outward to multiples of 4. q is [rows, headDim], keys
 * [32, headDim], scores [rows, 32].
 */
export function scoreBlock(
  k: KernelBuilder,
  headDim: number,
  tile: { readonly q: Address; readonly keys: Address; readonly scores: Address; readonly rows: Value<"i32"> },
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const { q, keys, scores, rows } = tile;
  const paired = k.let(rows.and(-2));
  k.for(begin.and(-4), end, 4, (j) => {
    const four = k.let(keys.add(j.mul(rowPitch(headDim))));
    const dots = (row: Value<"i32">, numRows: number): void => {
      const query = k.let(q.add(row.mul(rowPitch(headDim))));
      const sums = dotTile(k, headDim, query, numRows, four);
      const out = k.let(scores.add(row.mul(scoreRowBytes)).add(j.shl(2)));
      for (const [r, rowSums] of sums.entries()) storeFour(k, out, r * scoreRowBytes, rowSums);
    };
    k.for(0, paired, 2, (row) => dots(row, 2));
    k.if(paired.lt(rows), () => dots(paired, 1));
  });
}

/** Dot products of neighbouring query rows with four keys, each a vector of partial sums by lane. */
function dotTile(k: KernelBuilder, headDim: number, query: Address, numRows: number, keys: Address): Value<"f32v">[][] {
  const sums = Array.from({ length: numRows }, () => [0, 1, 2, 3].map(() => k.var("f32v", 0)));
  const registerBytes = k.lanes * 4;
  const pitch = rowPitch(headDim);
  const unroll = [8, 4, 2].find((steps) => (headDim / k.lanes) % steps === 0) ?? 1;
  k.for(0, headDim * 4, unroll * registerBytes, (column) => {
    const queryAt = k.let(query.add(column));
    const keysAt = k.let(keys.add(column));
    for (let step = 0; step < unroll; step++) {
      const queries = sums.map((_, r) => k.let(k.load("f32v", queryAt, r * pitch + step * registerBytes)));
      for (let i = 0; i < 4; i++) {
        const key = k.let(k.load("f32v", keysAt, i * pitch + step * registerBytes));
        for (const [r, row] of sums.entries()) row[i].set(queries[r].fma(key, row[i].value));
      }
    }
  });
  return sums.map((row) => row.map((sum) => sum.value));
}

/** Stores the sums of the lanes of four vectors side by side. */
function storeFour(k: KernelBuilder, address: Address, offset: number, sums: readonly Value<"f32v">[]): void {
  let four = k.let(sums[0].pairAdd(sums[1]).pairAdd(sums[2].pairAdd(sums[3])));
  if (k.lanes === 4) {
    k.store("f32v", address, four, offset);
    return;
  }
  for (let width = k.lanes / 4; width > 1; width /= 2) four = k.let(four.pairAdd(four));
  for (let i = 0; i < 4; i++) k.store("f32", address, four.lane(i), offset + i * 4);
}

/**
 * acc[row] = acc[row] * alpha[row] + sum over j of weights[row][j] * values[j], for j from `begin` up to `end` rounded outward to
 * multiples of 4 (weights there are 0). acc is [rows, headDim], values [32, headDim]; alpha is read at `alpha + row * alphaStride`.
 */
export function accumulateBlock(
  k: KernelBuilder,
  headDim: number,
  tile: {
    readonly acc: Address;
    readonly weights: Address;
    readonly values: Address;
    readonly alpha: Address;
    readonly alphaStride: number;
    readonly rows: Value<"i32">;
  },
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const rowBytes = rowPitch(headDim);
  const registerBytes = k.lanes * 4;
  const first = k.let(begin.and(-4));
  const columns = (row: Value<"i32">, numRows: number, column: Value<"i32"> | number, numRegisters: number): void => {
    const acc = k.let(tile.acc.add(row.mul(rowBytes)).add(column));
    const alphas = k.let(tile.alpha.add(row.mul(tile.alphaStride)));
    const weights = k.let(tile.weights.add(row.mul(scoreRowBytes)));
    const values = k.let(tile.values.add(column));
    const sums = Array.from({ length: numRows }, (_, r) => {
      const alpha = k.let(k.loadSplatF32(alphas, r * tile.alphaStride));
      return Array.from({ length: numRegisters }, (_, i) =>
        k.var("f32v", k.load("f32v", acc, r * rowBytes + i * registerBytes).mul(alpha)),
      );
    });
    k.for(first, end, 4, (j) => {
      const weightsAt = k.let(weights.add(j.shl(2)));
      const valuesAt = k.let(values.add(j.mul(rowBytes)));
      for (let u = 0; u < 4; u++) {
        const weight = sums.map((_, r) => k.let(k.loadSplatF32(weightsAt, r * scoreRowBytes + u * 4)));
        for (let i = 0; i < numRegisters; i++) {
          const value = k.let(k.load("f32v", valuesAt, u * rowBytes + i * registerBytes));
          for (const [r, row] of sums.entries()) row[i].set(weight[r].fma(value, row[i].value));
        }
      }
    });
    for (const [r, row] of sums.entries()) {
      for (const [i, sum] of row.entries()) k.store("f32v", acc, sum.value, r * rowBytes + i * registerBytes);
    }
  };
  // All rows meet a few channels of the values while these are in the first-level cache.
  const paired = k.let(tile.rows.and(-2));
  const registers = headDim / k.lanes;
  const whole = registers - (registers % 4);
  const allRows = (column: Value<"i32"> | number, numRegisters: number): void => {
    k.for(0, paired, 2, (row) => columns(row, 2, column, numRegisters));
    k.if(paired.lt(tile.rows), () => columns(paired, 1, column, numRegisters));
  };
  if (whole > 0) k.for(0, whole * registerBytes, 4 * registerBytes, (column) => allRows(column, 4));
  if (whole < registers) allRows(whole * registerBytes, registers - whole);
}
