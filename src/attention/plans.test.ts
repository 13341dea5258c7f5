/** What a plan leaves behind: nothing to run before the first, after one that failed or after `release`; and when a recording still counts. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, TestDevice } from "../../test/ops/testDevice.ts";
import type { Recorder } from "../ops/recorder.ts";
import { BatchAttention } from "./batchAttention.ts";
import { BlockSparseAttention } from "./blockSparse.ts";
import { MultiLevelCascadeAttention } from "./cascade.ts";
import { AbsorbedMla } from "./mla/index.ts";
import { type AttentionResult, freeResult } from "./results.ts";
import { batchOf } from "./sequences.ts";
import { VariableBlockSparseAttention } from "./variableBlockSparse.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 1, maxMemoryBytes: 64 * 2 ** 20 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

const heads = { headDim: 16, numQHeads: 4, numKvHeads: 2, smScale: 0.25, returnLse: true } as const;
const paged = { ...heads, pageSize: 4, storage: "f32", causal: true } as const;
const rows = (numRows: number) => test.f32([numRows, 4, 16], normals(numRows * 64, 1));
const columns = () => test.f32([20, 2, 16], normals(640, 2));
const pages = () => ({ ...columns(), shape: [5, 4, 2, 16] });
/** Two sequences with so many queries, over a page of their own each and a shared one. */
const levelsOf = (first: number, second: number) => [
  batchOf([{ queryLen: first + second, kvLen: 4, pages: [0] }], 5),
  batchOf(
    [first, second].map((queryLen, s) => ({ queryLen, kvLen: 5, pages: [1 + 2 * s, 2 + 2 * s] })),
    5,
  ),
];
const blocksOf = (numRows: number) => ({
  ...{ numBlockRows: 1, numBlockCols: 2, blockMaskMap: [1, 0, 1, 1] },
  ...{ blockRowSizes: [numRows, numRows], blockColSizes: [7, 13, 11, 9] },
});
const matrixOf = (numRows: number) => ({
  ...{ numRows, numCols: 20, blockRows: numRows },
  ...{ indptr: Int32Array.of(0, 2), indices: Int32Array.of(4, 1) },
});

/** Every class with a call of three rows, a plan for them, and one that it refuses. */
const classes = {
  BatchAttention: () => {
    const attention = new BatchAttention(test.device, paged);
    const batch = batchOf([{ queryLen: 3, kvLen: 7, pages: [4, 1] }], 5);
    const page = pages();
    return {
      attention,
      plan: () => attention.plan(batch),
      failing: () => attention.plan({ ...batch, kvLens: Int32Array.of(9) }),
      run: () => attention.run({ q: rows(3), cache: { k: page, v: page } }),
    };
  },
  MultiLevelCascadeAttention: () => {
    const attention = new MultiLevelCascadeAttention(test.device, 2, paged);
    const [first, last] = levelsOf(1, 2);
    const page = pages();
    return {
      attention,
      plan: () => attention.plan([first, last]),
      failing: () => attention.plan([first, { ...last, kvLens: Int32Array.of(5, 9) }]),
      run: () => attention.run({ q: rows(3), cache: { k: page, v: page } }),
    };
  },
  BlockSparseAttention: () => {
    const attention = new BlockSparseAttention(test.device, { ...heads, blockCols: 4 });
    return {
      attention,
      plan: () => attention.plan(matrixOf(3)),
      failing: () => attention.plan({ ...matrixOf(3), indices: Int32Array.of(4, 5) }),
      run: () => attention.run({ q: rows(3), k: columns(), v: columns() }),
    };
  },
  VariableBlockSparseAttention: () => {
    const attention = new VariableBlockSparseAttention(test.device, heads);
    return {
      attention,
      plan: () => attention.plan(blocksOf(3)),
      failing: () => attention.plan({ ...blocksOf(3), blockColSizes: [7, 13, 11, 8] }),
      run: () => attention.run({ q: rows(3), k: columns(), v: columns() }),
    };
  },
};
const unplanned = "plan must be called before the attention is recorded, and succeed";

describe.each(Object.entries(classes))("%s", (_name, make) => {
  it("runs nothing before a plan, after one that failed, and after release", async () => {
    const { attention, plan, failing, run } = make();
    const outOf = async (): Promise<number[]> => {
      const result: AttentionResult = await run();
      const values = Array.from(test.device.f32At(result.out.pointer, 3 * 4 * 16));
      freeResult(test.device, result);
      return values;
    };
    await expect(run()).rejects.toThrow(unplanned);
    plan();
    const first = await outOf();
    expect(first.every((value) => Number.isFinite(value) && value !== 0)).toBe(true);
    expect(failing).toThrow();
    await expect(run()).rejects.toThrow(unplanned);
    plan();
    expect(await outOf()).toEqual(first);
    attention.release();
    attention.release();
    await expect(run()).rejects.toThrow(unplanned);
    plan();
    expect(await outOf()).toEqual(first);
    attention.release();
  });

  it("holds no memory after release", async () => {
    const { attention, plan, run } = make();
    plan();
    freeResult(test.device, await run()); // the device makes room for the kernels' scratch
    attention.release();
    test.clear();
    const { usedBytes } = test.device.stats();
    const again = make();
    again.plan();
    freeResult(test.device, await again.run());
    again.attention.release();
    test.clear();
    expect(test.device.stats().usedBytes).toBe(usedBytes);
  });
});

/** Records once, plans again, and runs the recording where the key says that it still counts: it must give what a new call gives. */
async function checkKey(
  attention: { readonly recordingKey: string },
  record: (recorder: Recorder) => unknown,
  replan: () => void,
  out: { readonly pointer: number },
  numValues: number,
): Promise<boolean> {
  const { device } = test;
  const kept = device.commands();
  record({ device, commands: kept });
  const key = attention.recordingKey;
  replan();
  const isKept = attention.recordingKey === key;
  const values = async (commands: typeof kept): Promise<number[]> => {
    device.f32At(out.pointer, numValues).fill(NaN);
    await device.run(commands);
    return Array.from(device.f32At(out.pointer, numValues));
  };
  const fresh = device.commands();
  record({ device, commands: fresh });
  const right = await values(fresh);
  if (isKept) expect(await values(kept)).toEqual(right);
  kept.free();
  fresh.free();
  return isKept;
}

describe("recordingKey", () => {
  it("of absorbed latent attention counts the rows, whose queries are put together", async () => {
    const spec = { numHeads: 4, kvLoraRank: 32, qkRopeHeadDim: 8, pageSize: 4, storage: "f32", causal: true } as const;
    const attention = new AbsorbedMla(test.device, { ...spec, smScale: 0.2 });
    const tensor = (...shape: number[]) =>
      test.f32(
        shape,
        normals(
          shape.reduce((a, b) => a * b),
          3,
        ),
      );
    const cache = { ckv: tensor(5, 4, 32), kpe: tensor(5, 4, 8) };
    const args = { qLatent: tensor(8, 4, 32), qPe: tensor(8, 4, 8), out: tensor(8, 4, 32), cache };
    attention.plan(levelsOf(3, 3)[1]);
    await test.run((recorder) => attention.record(recorder, args)); // the workspace will not grow
    attention.plan(levelsOf(1, 1)[1]);
    const replan = () => attention.plan(levelsOf(1, 2)[1]);
    const record = (recorder: Recorder) => attention.record(recorder, args);
    expect(await checkKey(attention, record, replan, args.out, 3 * 4 * 32)).toBe(false);
    attention.release();
  });

  const tensors = () => {
    const [q, out, lse] = [rows(8), rows(8), test.f32([8, 4], new Float32Array(32))];
    return { q, out, lse };
  };

  it.each([
    { to: [1, 2], isKept: false },
    { to: [1, 1], isKept: true },
  ])("of a cascade says whether a recording for two rows counts for $to", async ({ to, isKept }) => {
    const attention = new MultiLevelCascadeAttention(test.device, 2, paged);
    attention.plan(levelsOf(4, 4)); // the workspace will not grow
    attention.plan(levelsOf(1, 1));
    const args = { ...tensors(), cache: { k: pages(), v: pages() } };
    const replan = () => attention.plan(levelsOf(to[0], to[1]));
    const counts = await checkKey(
      attention,
      (recorder) => attention.record(recorder, args),
      replan,
      args.out,
      (to[0] + to[1]) * 64,
    );
    expect(counts).toBe(isKept);
    attention.release();
  });

  it.each([
    { to: 3, isKept: false },
    { to: 2, isKept: true },
  ])("of blocks of any size says whether a recording for two rows counts for $to", async ({ to, isKept }) => {
    const attention = new VariableBlockSparseAttention(test.device, heads);
    attention.plan(blocksOf(8));
    attention.plan(blocksOf(2));
    const { q, out, lse } = tensors();
    const [k, v] = [columns(), columns()];
    let numRows = 2;
    const record = (recorder: Recorder) =>
      attention.record(recorder, { q, k, v, out, lse: { ...lse, shape: [numRows, 4] } });
    const replan = () => {
      numRows = to;
      attention.plan(blocksOf(to));
    };
    const counts = await checkKey(attention, record, replan, lse, to * 4);
    expect(counts).toBe(isKept);
    attention.release();
  });
});

it("a plan that finds no room can be released and made again", async () => {
  const attention = new VariableBlockSparseAttention(test.device, heads);
  const { usedBytes, maxMemoryBytes } = test.device.stats();
  attention.plan(blocksOf(2));
  const numRows = maxMemoryBytes / 16; // an LSE as large as the memory
  expect(() => attention.plan(blocksOf(numRows))).toThrow("no room");
  attention.release();
  attention.plan(blocksOf(2));
  attention.release();
  expect(test.device.stats().usedBytes).toBe(usedBytes);
});

it("nor is memory of a plan lost that finds no room for its page ids", async () => {
  const attention = new BatchAttention(test.device, paged);
  const { usedBytes, maxMemoryBytes } = test.device.stats();
  const batch = batchOf([{ queryLen: 3, kvLen: 7, pages: [4, 1] }], 5);
  attention.plan(batch);
  const blockTables = new Int32Array(maxMemoryBytes / 4);
  const large = { ...batch, blockTables, pageIndptr: undefined, maxPages: blockTables.length };
  expect(() => attention.plan(large)).toThrow("no room");
  attention.release();
  expect(test.device.stats().usedBytes).toBe(usedBytes);
});
