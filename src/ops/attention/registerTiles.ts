/**
 * Kernel parts: the two products of attention on one block of keys, with sums held in registers. Each sum runs in an order that depends
 * on nothing but the channels and the keys, never on how many rows share a tile.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";

type Address = Value<"i32">;

/** Bytes of one row of scores: a block of keys. */
const scoreRowBytes = 32 * 4;

/**
 * scores[row][j] = dot(q[row], key j) for all rows and j from `begin` up to `end`, which are rounded outward to multiples of 4.
 * q is [rows, headDim], scores [rows, 32], keyTable 32 addresses.
 */
export function scoreBlock(
  k: KernelBuilder,
  headDim: number,
  q: Address,
  scores: Address,
  keyTable: Address,
  rows: Value<"i32">,
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  k.for(begin.and(-4), end, 4, (j) => {
    const keys = [0, 1, 2, 3].map((i) => k.let(k.load("i32", keyTable.add(j.shl(2)), i * 4)));
    const paired = k.let(rows.and(-2));
    const tile = (row: Value<"i32">, numRows: number): void => {
      const query = k.let(q.add(row.mul(headDim * 4)));
      const out = k.let(scores.add(row.mul(scoreRowBytes)).add(j.shl(2)));
      const sums = dotTile(k, headDim, query, numRows, keys);
      for (const [r, row4] of sums.entries()) storeFour(k, out, r * scoreRowBytes, row4);
    };
    k.for(0, paired, 2, (row) => tile(row, 2));
    k.if(paired.lt(rows), () => tile(paired, 1));
  });
}

/** Dot products of neighbouring query rows with four keys, each a vector of partial sums by lane. */
function dotTile(
  k: KernelBuilder,
  headDim: number,
  query: Address,
  numRows: number,
  keys: readonly Address[],
): Value<"f32v">[][] {
  const sums = Array.from({ length: numRows }, () => keys.map(() => k.var("f32v", 0)));
  const step = (at: Address | 0, offset: number): void => {
    const place = (row: Address): Address => (at === 0 ? row : row.add(at));
    const keyLanes = keys.map((key) => k.let(k.load("f32v", place(key), offset)));
    for (let r = 0; r < numRows; r++) {
      const queryLanes = k.let(k.load("f32v", place(query), r * headDim * 4 + offset));
      for (const [i, lanes] of keyLanes.entries()) sums[r][i].set(queryLanes.fma(lanes, sums[r][i].value));
    }
  };
  const unroll = unrollOf(headDim / k.lanes);
  const stepBytes = k.lanes * 4;
  k.for(0, headDim * 4, unroll * stepBytes, (at) => {
    for (let u = 0; u < unroll; u++) step(at, u * stepBytes);
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
 * multiples of 4 (weights there are 0). acc is [rows, headDim]; alpha is read at rowState + row * stateBytes + alphaOffset.
 */
export function accumulateBlock(
  k: KernelBuilder,
  headDim: number,
  tile: {
    readonly acc: Address;
    readonly weights: Address;
    readonly valueTable: Address;
    readonly rowState: Address;
    readonly stateBytes: number;
    readonly alphaOffset: number;
  },
  rows: Value<"i32">,
  begin: Value<"i32">,
  end: Value<"i32">,
): void {
  const first = k.let(begin.and(-4));
  const last = k.let(end.add(3).and(-4));
  const registerBytes = k.lanes * 4;
  const columns = (row: Value<"i32">, numRows: number, column: Value<"i32"> | number, numRegisters: number): void => {
    const acc = k.let(tile.acc.add(row.mul(headDim * 4)).add(column));
    const state = k.let(tile.rowState.add(row.mul(tile.stateBytes)));
    const weights = k.let(tile.weights.add(row.mul(scoreRowBytes)));
    const sums = Array.from({ length: numRows }, (_, r) => {
      const alpha = k.let(k.loadSplatF32(state, r * tile.stateBytes + tile.alphaOffset));
      return Array.from({ length: numRegisters }, (_, i) =>
        k.var("f32v", k.load("f32v", acc, r * headDim * 4 + i * registerBytes).mul(alpha)),
      );
    });
    k.for(first.shl(2), last.shl(2), 8, (j) => {
      for (const next of [0, 4]) {
        const value = k.let(k.load("i32", tile.valueTable.add(j), next).add(column));
        const weight = sums.map((_, r) => k.let(k.loadSplatF32(weights.add(j), r * scoreRowBytes + next)));
        for (let i = 0; i < numRegisters; i++) {
          const lanes = k.let(k.load("f32v", value, i * registerBytes));
          for (const [r, row] of sums.entries()) row[i].set(weight[r].fma(lanes, row[i].value));
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
  const paired = k.let(rows.and(-2));
  k.for(0, paired, 2, (row) => allColumns(row, 2));
  k.if(paired.lt(rows), () => allColumns(paired, 1));
}

function unrollOf(registers: number): number {
  return [8, 4, 2].find((unroll) => registers % unroll === 0) ?? 1;
}
