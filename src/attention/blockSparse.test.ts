import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { largestError, numbers } from "../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../test/ops/testDevice.ts";
import { BlockSparseAttention, type BlockSparseMatrix, type BlockSparseSpec } from "./blockSparse.ts";
import { type AttentionResult, freeResult } from "./results.ts";
import { VariableBlockSparseAttention, type VariableBlocks } from "./variableBlockSparse.ts";

const heads = { headDim: 12, numQHeads: 6, numKvHeads: 2, smScale: 12 ** -0.5, returnLse: true } as const;

/** Whether a query sees a key, for a key/value head. */
type Dense = (kvHead: number, row: number, col: number) => boolean;

/** Attention under a dense mask, in float64: [rows, heads, channels] and its lse. */
function denseAttention(rows: number, cols: number, tensors: Record<"q" | "k" | "v", Float32Array>, sees: Dense) {
  const { headDim, numQHeads, numKvHeads, smScale } = heads;
  const out = new Float32Array(rows * numQHeads * headDim);
  const lse = new Float32Array(rows * numQHeads).fill(-Infinity);
  for (let at = 0; at < rows * numQHeads; at++) {
    const [row, kvHead] = [Math.floor(at / numQHeads), Math.floor((at % numQHeads) / (numQHeads / numKvHeads))];
    const visible = Array.from({ length: cols }, (_, col) => col).filter((col) => sees(kvHead, row, col));
    const place = (col: number) => (col * numKvHeads + kvHead) * headDim;
    const weights = visible.map((col) => {
      let dot = 0;
      for (let d = 0; d < headDim; d++) dot += tensors.q[at * headDim + d] * tensors.k[place(col) + d];
      return Math.exp(dot * smScale);
    });
    const sum = weights.reduce((a, b) => a + b, 0);
    lse[at] = Math.log(sum);
    for (let d = 0; d < headDim && sum > 0; d++) {
      out[at * headDim + d] = visible.reduce((acc, col, j) => acc + (weights[j] / sum) * tensors.v[place(col) + d], 0);
    }
  }
  return { out, lse };
}

/** Reproducible yes and no, with about this share of yes. */
const chances = (seed: number, n: number, share: number) =>
  Array.from(numbers(seed, n), (x) => x < 3.4 * (share - 0.5));

/** A random matrix of blocks; its last block row is empty. */
function randomMatrix(
  R: number,
  C: number,
  M: number,
  N: number,
  hasMask: boolean,
): BlockSparseMatrix & { sees: Dense } {
  const [rows, cols] = [M / R, N / C];
  const present = chances(R * 31 + C, rows * cols, 0.4).map((x, i) => x && Math.floor(i / cols) < rows - 1);
  const indptr = new Int32Array(rows + 1);
  const indices: number[] = [];
  for (let i = 0; i < rows; i++) {
    // From the right: the order of the blocks must not matter to the masks.
    for (let j = cols - 1; j >= 0; j--) if (present[i * cols + j]) indices.push(j);
    indptr[i + 1] = indices.length;
  }
  const blockMask = hasMask ? chances(7, indices.length * R * C, 0.7) : undefined;
  const sees: Dense = (_, row, col) => {
    const [i, j] = [Math.floor(row / R), Math.floor(col / C)];
    const block = indices.indexOf(j, indptr[i]);
    if (block === -1 || block >= indptr[i + 1]) return false;
    return blockMask === undefined || blockMask[(block * R + (row % R)) * C + (col % C)];
  };
  return { numRows: M, numCols: N, blockRows: R, indptr, indices: Int32Array.from(indices), blockMask, sees };
}

const sizes = [1, 4, 16];
const grid = sizes.flatMap((R) => sizes.flatMap((C) => [false, true].map((mask) => [R, C, mask] as const)));

describe.each(Object.entries(testDevices))("block-sparse attention on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  function inputs(M: number, N: number) {
    const { numQHeads, numKvHeads, headDim } = heads;
    const [q, k, v] = [M * numQHeads, N * numKvHeads, N * numKvHeads].map((n, seed) => numbers(seed + 1, n * headDim));
    const tensors = {
      q: test.f32([M, numQHeads, headDim], q),
      k: test.f32([N, numKvHeads, headDim], k),
      v: test.f32([N, numKvHeads, headDim], v),
    };
    return { numbers: { q, k, v }, tensors };
  }

  function expectEqual(result: AttentionResult, want: { out: Float32Array; lse: Float32Array }): void {
    expect(largestError(test.device.f32At(result.out.pointer, want.out.length).slice(), want.out)).toBeLessThan(3e-6);
    expect(result.lse?.shape).toEqual([want.lse.length / heads.numQHeads, heads.numQHeads]);
    const lse = test.device.f32At(result.lse?.pointer ?? 0, want.lse.length).slice();
    expect(largestError(lse, want.lse)).toBeLessThan(3e-6);
  }

  it.each(grid)("equals a dense mask for blocks of %i x %i, block masks: %s", async (R, C, hasMask) => {
    const [M, N] = [48, 64];
    const matrix = randomMatrix(R, C, M, N, hasMask);
    const given = inputs(M, N);
    const spec: BlockSparseSpec = { ...heads, blockCols: C, blockMask: hasMask };
    const attention = new BlockSparseAttention(test.device, spec);
    attention.plan(matrix);
    const result = await attention.run(given.tensors);
    expectEqual(result, denseAttention(M, N, given.numbers, matrix.sees));
    freeResult(test.device, result);
    attention.release();
  });

  it("equals a dense mask for blocks whose sizes differ, by key/value head too", async () => {
    // The second head's second block row is empty, and so is one of its block columns.
    const blocks: VariableBlocks = {
      numBlockRows: 4,
      numBlockCols: 3,
      blockMaskMap: [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1],
      blockRowSizes: [5, 1, 17, 9, 8, 9, 0, 15],
      blockColSizes: [3, 20, 7, 10, 0, 20],
    };
    const blockOf = (sizesOf: ArrayLike<number>, head: number, count: number, index: number): number => {
      let [block, end] = [0, sizesOf[head * count]];
      while (index >= end) end += sizesOf[head * count + ++block];
      return block;
    };
    const [M, N] = [32, 30];
    const given = inputs(M, N);
    const attention = new VariableBlockSparseAttention(test.device, heads);
    attention.plan(blocks);
    const kernels = test.device.stats().numKernels;
    const result = await attention.run(given.tensors);
    const sees: Dense = (head, row, col) => {
      const [i, j] = [blockOf(blocks.blockRowSizes, head, 4, row), blockOf(blocks.blockColSizes, head, 3, col)];
      return blocks.blockMaskMap[(head * 4 + i) * 3 + j] === 1;
    };
    expectEqual(result, denseAttention(M, N, given.numbers, sees));
    freeResult(test.device, result);

    const everything = { ...blocks, blockMaskMap: new Array<number>(24).fill(1) };
    attention.plan(everything);
    const { numQHeads, headDim } = heads;
    const out = test.f32([M, numQHeads, headDim], new Float32Array(M * numQHeads * headDim));
    const lse = test.f32([M, numQHeads], new Float32Array(M * numQHeads));
    expect(await attention.run({ ...given.tensors, out, lse })).toEqual({ out, lse });
    expectEqual(
      { out, lse },
      denseAttention(M, N, given.numbers, () => true),
    );
    // The copy of the lse was compiled by the first run; the second plan needed nothing new.
    expect(test.device.stats().numKernels).toBe(kernels + 1);
    attention.release();
  });

  it("names blocks that do not fit", () => {
    const attention = new BlockSparseAttention(test.device, { ...heads, blockCols: 4 });
    const masked = new BlockSparseAttention(test.device, { ...heads, blockCols: 4, blockMask: true });
    const matrix = randomMatrix(4, 4, 8, 16, false);
    const fails = (changes: Partial<BlockSparseMatrix>, message: string, on = attention) =>
      expect(() => on.plan({ ...matrix, ...changes })).toThrow(message);
    fails({ numRows: 9 }, "numRows must be a multiple of blockRows = 4, got 9");
    fails({ numCols: 15 }, "numCols must be a multiple of blockCols = 4, got 15");
    fails({ blockRows: 0 }, "blockRows must be an integer of at least 1, got 0");
    fails({ indptr: Int32Array.of(0, 1) }, "indptr must have numRows / blockRows + 1 = 3 entries, got 2");
    const indices = Int32Array.of(0, 3);
    fails(
      { indptr: Int32Array.of(0, 2, 1), indices },
      "indptr must rise from 0 to at most the 2 indices, got 2 then 1 for block row 1",
    );
    fails(
      { indptr: Int32Array.of(0, 2, 3), indices },
      "indptr must rise from 0 to at most the 2 indices, got 2 then 3 for block row 1",
    );
    fails(
      { indptr: Int32Array.of(0, 1, 2), indices: Int32Array.of(0, 4) },
      "indices[1] = 4 is not a block column: there are 4",
    );
    fails({ blockMask: [] }, "blockMask must be absent: the spec lacks blockMask");
    fails({}, "blockMask must be given because the spec has blockMask", masked);
    const blockMask = [1, 2, 3];
    fails(
      { indptr: Int32Array.of(0, 1, 2), indices, blockMask },
      "blockMask must have blocks * blockRows * blockCols = 32 entries, got 3",
      masked,
    );
    expect(() => new BlockSparseAttention(test.device, { ...heads, blockCols: 0 })).toThrow(
      "blockCols must be an integer of at least 1, got 0",
    );
    for (const used of [attention, masked]) used.release();
  });

  it("names sizes and tensors that do not fit", async () => {
    const attention = new VariableBlockSparseAttention(test.device, heads);
    const blocks: VariableBlocks = {
      numBlockRows: 2,
      numBlockCols: 1,
      blockMaskMap: [1, 1, 1, 1],
      blockRowSizes: [1, 2, 2, 1],
      blockColSizes: [4, 4],
    };
    const fails = (changes: Partial<VariableBlocks>, message: string) =>
      expect(() => attention.plan({ ...blocks, ...changes })).toThrow(message);
    fails({ blockMaskMap: [1] }, "blockMaskMap must have 4 entries, got 1");
    fails({ blockRowSizes: [1] }, "blockRowSizes must have 4 entries, got 1");
    fails({ blockColSizes: [4, -1] }, "blockColSizes[1][0] must be an integer of at least 0, got -1");
    fails(
      { blockRowSizes: [1, 2, 2, 2] },
      "blockRowSizes of every head must add up to that of head 0, 3, got 4 for head 1",
    );
    attention.plan(blocks);
    const { tensors } = inputs(3, 4);
    await expect(attention.run({ ...tensors, k: tensors.q })).rejects.toThrow(
      "k must have shape [4, 2, 12], got [3, 6, 12]",
    );
    await expect(attention.run({ ...tensors, q: tensors.k })).rejects.toThrow(
      "q must have shape [at least 3, 6, 12], got [4, 2, 12]",
    );
    await expect(attention.run({ ...tensors, lse: tensors.q })).rejects.toThrow(
      "lse must have shape [3, 6], got [3, 6, 12]",
    );
    attention.release();
    expect(() => new VariableBlockSparseAttention(test.device, { ...heads, numQHeads: 5 })).toThrow(
      "numQHeads must be a multiple of numKvHeads = 2, got 5",
    );
  });
});
