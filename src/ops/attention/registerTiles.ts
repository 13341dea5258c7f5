/**
 * Kernel parts: the products of attention on one block of keys, with sums held in registers: scores, weighted sums of values, and the
 * up-projection of latent keys. Each sum runs in an order that depends on nothing but the channels and the keys, never on how many rows
 * share a tile.
 */
import type { KernelBuilder, Operand, Value } from "../../kernels/index.ts";
import { type Extent, f32Bytes, roundUp } from "./dims.ts";

type Address = Value<"i32">;

/** Bytes of one row of scores: a block of keys. */
const scoreRowBytes = 32 * 4;

/**
 * Bytes from one row of queries, keys, values or sums in scratch to the next: a cache line more than the row, because columns of rows that
 * are a power of two apart would all fall into the same few places of the first-level cache. Decoders may write 15 channels past a row.
 */
export function rowPitch(channels: number): number {
  return Math.ceil(channels / 16) * 64 + 64;
}

/**
 * scores[row][j] = dot(q[row], keys[j]) for j from `begin` up to `end`, rounded outward to multiples of 4. q is [rows, channels], keys
 * [32, channels], both a rowPitch(maxChannels) apart and zero past the last channel; scores [rows, 32].
 */
export function scoreBlock(
  k: KernelBuilder,
  { channels, maxChannels }: { readonly channels: Extent; readonly maxChannels: number },
  tile: { readonly q: Address; readonly keys: Address; readonly scores: Address; readonly rows: Value<"i32"> },
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const { q, keys, scores, rows } = tile;
  const pitch = rowPitch(maxChannels);
  const rowBytes = f32Bytes(k, roundUp(k, channels, k.lanes));
  const paired = k.let(rows.and(-2));
  k.for(begin.and(-4), end, 4, (j) => {
    const four = k.let(keys.add(j.mul(pitch)));
    const dots = (row: Value<"i32">, numRows: number): void => {
      const query = k.let(q.add(row.mul(pitch)));
      const sums = dotTile(k, rowBytes, pitch, query, numRows, four);
      const out = k.let(scores.add(row.mul(scoreRowBytes)).add(j.shl(2)));
      for (const [r, rowSums] of sums.entries()) storeFour(k, out, r * scoreRowBytes, rowSums);
    };
    k.for(0, paired, 2, (row) => dots(row, 2));
    k.if(paired.lt(rows), () => dots(paired, 1));
  });
}

/** Dot products of neighbouring query rows with four keys, each a vector of partial sums by lane. */
function dotTile(
  k: KernelBuilder,
  rowBytes: Extent,
  pitch: number,
  query: Address,
  numRows: number,
  keys: Address,
): Value<"f32v">[][] {
  const sums = Array.from({ length: numRows }, () => [0, 1, 2, 3].map(() => k.var("f32v", 0)));
  const registerBytes = k.lanes * 4;
  const registers = typeof rowBytes === "number" ? rowBytes / registerBytes : 1;
  const unroll = [8, 4, 2].find((steps) => registers % steps === 0) ?? 1;
  k.for(0, rowBytes, unroll * registerBytes, (column) => {
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

/** Rows of weighted sums: sums[row] = start + sum over j of weights[row][j] * values[j]. */
export interface WeightedSums {
  /** [rows, columns], `sumPitch` bytes apart. */
  readonly sums: Address;
  readonly sumPitch: number;
  /** [rows, terms] f32. */
  readonly weights: Address;
  readonly weightPitch: number;
  /** [terms, columns] f32. */
  readonly values: Address;
  readonly valuePitch: number;
  /** Channels of a sum. */
  readonly columns: Extent;
  readonly rows: Value<"i32">;
  /**
   * What the sums of neighbouring rows from `row` on begin with: a function of the r-th of them and the address of a register of its sums,
   * which is also `column` bytes into the row.
   */
  readonly start: (row: Value<"i32">, numRows: number) => StartSum;
}

export type StartSum = (
  r: number,
  register: { address: Address; offset: number; column: Operand<"i32"> },
) => Value<"f32v">;

/**
 * Adds the terms `begin` up to `end`. With `padded` both are rounded outward to multiples of 4: weights there must be 0 and values finite;
 * else exactly these terms are read.
 */
export function weightedSums(
  k: KernelBuilder,
  tile: WeightedSums,
  begin: Operand<"i32">,
  end: Value<"i32">,
  padded: boolean,
): void {
  const registerBytes = k.lanes * 4;
  const first = typeof begin === "number" ? begin : k.let(begin.and(-4));
  const inFours = padded ? end : k.let(end.and(-4));
  const columns = (row: Value<"i32">, numRows: number, column: Operand<"i32">, numRegisters: number): void => {
    const sumsAt = k.let(tile.sums.add(row.mul(tile.sumPitch)).add(column));
    const weights = k.let(tile.weights.add(row.mul(tile.weightPitch)));
    const values = k.let(tile.values.add(column));
    const start = tile.start(row, numRows);
    const sums = Array.from({ length: numRows }, (_, r) =>
      Array.from({ length: numRegisters }, (_, i) => {
        const place = { address: sumsAt, offset: r * tile.sumPitch + i * registerBytes };
        const at = typeof column === "number" ? column + i * registerBytes : column.add(i * registerBytes);
        return k.var("f32v", start(r, { ...place, column: at }));
      }),
    );
    const term = (weightsAt: Address, valuesAt: Address, u: number): void => {
      const weight = sums.map((_, r) => k.let(k.loadSplatF32(weightsAt, r * tile.weightPitch + u * 4)));
      for (let i = 0; i < numRegisters; i++) {
        const value = k.let(k.load("f32v", valuesAt, u * tile.valuePitch + i * registerBytes));
        for (const [r, row] of sums.entries()) row[i].set(weight[r].fma(value, row[i].value));
      }
    };
    k.for(first, inFours, 4, (j) => {
      const weightsAt = k.let(weights.add(j.shl(2)));
      const valuesAt = k.let(values.add(j.mul(tile.valuePitch)));
      for (let u = 0; u < 4; u++) term(weightsAt, valuesAt, u);
    });
    if (!padded) {
      k.for(inFours, end, 1, (j) => term(k.let(weights.add(j.shl(2))), k.let(values.add(j.mul(tile.valuePitch))), 0));
    }
    for (const [r, row] of sums.entries()) {
      for (const [i, sum] of row.entries()) k.store("f32v", sumsAt, sum.value, r * tile.sumPitch + i * registerBytes);
    }
  };
  // All rows meet a few channels of the values while these are in the first-level cache.
  const paired = k.let(tile.rows.and(-2));
  const allRows = (column: Operand<"i32">, numRegisters: number): void => {
    k.for(0, paired, 2, (row) => columns(row, 2, column, numRegisters));
    k.if(paired.lt(tile.rows), () => columns(paired, 1, column, numRegisters));
  };
  if (typeof tile.columns === "number") {
    const registers = Math.ceil(tile.columns / k.lanes);
    const whole = registers - (registers % 4);
    if (whole > 0) k.for(0, whole * registerBytes, 4 * registerBytes, (column) => allRows(column, 4));
    if (whole < registers) allRows(whole * registerBytes, registers - whole);
    return;
  }
  const registers = k.let(tile.columns.add(k.lanes - 1).divU(k.lanes));
  const wholeBytes = k.let(registers.and(-4).mul(registerBytes));
  k.for(0, wholeBytes, 4 * registerBytes, (column) => allRows(column, 4));
  k.for(wholeBytes, registers.mul(registerBytes), registerBytes, (column) => allRows(column, 1));
}

/**
 * acc[row] = acc[row] * alpha[row] + sum over j of weights[row][j] * values[j], for j from `begin` up to `end` rounded outward to
 * multiples of 4 (weights there are 0). acc is [rows, columns], values [32, columns], their rows as far apart as `maxColumns` and `valuePitch`
 * say; alpha is read at `alpha + row * alphaStride`.
 */
export function accumulateBlock(
  k: KernelBuilder,
  tile: {
    readonly acc: Address;
    readonly weights: Address;
    readonly values: Address;
    readonly valuePitch: number;
    readonly columns: Extent;
    readonly maxColumns: number;
    readonly alpha: Address;
    readonly alphaStride: number;
    readonly rows: Value<"i32">;
  },
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const { acc, weights, values, valuePitch, columns, rows } = tile;
  const sums: WeightedSums = {
    sums: acc,
    sumPitch: rowPitch(tile.maxColumns),
    weights,
    weightPitch: scoreRowBytes,
    values,
    valuePitch,
    columns,
    rows,
    start(row, numRows) {
      const at = k.let(tile.alpha.add(row.mul(tile.alphaStride)));
      const alphas = Array.from({ length: numRows }, (_, r) => k.let(k.loadSplatF32(at, r * tile.alphaStride)));
      return (r, { address, offset }) => k.load("f32v", address, offset).mul(alphas[r]);
    },
  };
  weightedSums(k, sums, begin, end, true);
}
