/**
 * Kernel parts: the two products of attention on one block of keys, with sums held in registers. Each sum runs in an order that depends
 * on nothing but the channels and the keys, never on how many rows share a tile or where the keys lie.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";

type Address = Value<"i32">;

/** Bytes of one row of scores: a block of keys. */
const scoreRowBytes = 32 * 4;

/** Where four neighbouring rows of keys or values have the channel at byte `column`. */
interface FourRows {
  at(column: Address | number): readonly { readonly address: Address; readonly offset: number }[];
}

/** Rows j to j + 3 of a block. */
export type RowSource = (j: Value<"i32">) => FourRows;

/** Rows whose addresses are in a table. */
export function tableRows(k: KernelBuilder, table: Address): RowSource {
  return (j) => {
    const entry = k.let(table.add(j.shl(2)));
    const rows = [0, 1, 2, 3].map((i) => k.let(k.load("i32", entry, i * 4)));
    return { at: (column) => rows.map((row) => ({ address: k.let(row.add(column)), offset: 0 })) };
  };
}

/** Rows side by side. */
export function packedRows(k: KernelBuilder, base: Address, rowBytes: number): RowSource {
  return (j) => {
    const first = k.let(base.add(j.mul(rowBytes)));
    return {
      at: (column) => {
        const address = k.let(first.add(column));
        return [0, 1, 2, 3].map((i) => ({ address, offset: i * rowBytes }));
      },
    };
  };
}

/** scores[row][j] = dot(q[row], key j) for j from `begin` up to `end`, rounded outward to multiples of 4. q is [rows, headDim]. */
export function scoreBlock(
  k: KernelBuilder,
  headDim: number,
  tile: { readonly q: Address; readonly scores: Address; readonly rows: Value<"i32"> },
  keys: RowSource,
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const { q, scores, rows } = tile;
  const paired = k.let(rows.and(-2));
  k.for(begin.and(-4), end, 4, (j) => {
    const four = keys(j);
    const dots = (row: Value<"i32">, numRows: number): void => {
      const query = k.let(q.add(row.mul(headDim * 4)));
      const sums = dotTile(k, headDim, query, numRows, four);
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
  headDim: number,
  query: Address,
  numRows: number,
  keys: FourRows,
): Value<"f32v">[][] {
  const sums = Array.from({ length: numRows }, () => [0, 1, 2, 3].map(() => k.var("f32v", 0)));
  const registerBytes = k.lanes * 4;
  const unroll = [8, 4, 2].find((steps) => (headDim / k.lanes) % steps === 0) ?? 1;
  k.for(0, headDim * 4, unroll * registerBytes, (column) => {
    const queryAt = k.let(query.add(column));
    const keysAt = keys.at(column);
    for (let step = 0; step < unroll; step++) {
      const queries = sums.map((_, r) => k.let(k.load("f32v", queryAt, r * headDim * 4 + step * registerBytes)));
      for (const [i, { address, offset }] of keysAt.entries()) {
        const key = k.let(k.load("f32v", address, offset + step * registerBytes));
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
 * acc[row] = acc[row] * alpha[row] + sum over j of weights[row][j] * value j, for j from `begin` up to `end` rounded outward to
 * multiples of 4 (weights there are 0). acc is [rows, headDim]; alpha is read at `alpha + row * alphaStride`.
 */
export function accumulateBlock(
  k: KernelBuilder,
  headDim: number,
  tile: {
    readonly acc: Address;
    readonly weights: Address;
    readonly alpha: Address;
    readonly alphaStride: number;
    readonly rows: Value<"i32">;
  },
  values: RowSource,
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const first = k.let(begin.and(-4));
  const registerBytes = k.lanes * 4;
  const columns = (row: Value<"i32">, numRows: number, column: Value<"i32"> | number, numRegisters: number): void => {
    const acc = k.let(tile.acc.add(row.mul(headDim * 4)).add(column));
    const alphas = k.let(tile.alpha.add(row.mul(tile.alphaStride)));
    const weights = k.let(tile.weights.add(row.mul(scoreRowBytes)));
    const sums = Array.from({ length: numRows }, (_, r) => {
      const alpha = k.let(k.loadSplatF32(alphas, r * tile.alphaStride));
      return Array.from({ length: numRegisters }, (_, i) =>
        k.var("f32v", k.load("f32v", acc, r * headDim * 4 + i * registerBytes).mul(alpha)),
      );
    });
    k.for(first, end, 4, (j) => {
      const weightsAt = k.let(weights.add(j.shl(2)));
      for (const [u, { address, offset }] of values(j).at(column).entries()) {
        const weight = sums.map((_, r) => k.let(k.loadSplatF32(weightsAt, r * scoreRowBytes + u * 4)));
        for (let i = 0; i < numRegisters; i++) {
          const value = k.let(k.load("f32v", address, offset + i * registerBytes));
          for (const [r, row] of sums.entries()) row[i].set(weight[r].fma(value, row[i].value));
        }
      }
    });
    for (const [r, row] of sums.entries()) {
      for (const [i, sum] of row.entries()) k.store("f32v", acc, sum.value, r * headDim * 4 + i * registerBytes);
    }
  };
  const allColumns = (row: Value<"i32">, numRows: number): void => {
    const registers = headDim / k.lanes;
    const width = 8 / numRows;
    const whole = registers - (registers % width);
    if (whole > 0) {
      k.for(0, whole * registerBytes, width * registerBytes, (column) => columns(row, numRows, column, width));
    }
    if (whole < registers) columns(row, numRows, whole * registerBytes, registers - whole);
  };
  const paired = k.let(tile.rows.and(-2));
  k.for(0, paired, 2, (row) => allColumns(row, 2));
  k.if(paired.lt(tile.rows), () => allColumns(paired, 1));
}
