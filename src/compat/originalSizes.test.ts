/**
 * The grids of the originals' tests at their own sizes: multi-queries paged attention (pytorch/xla) and ragged paged attention (JAX). Some rows
 * of each sequence are judged; the other tests of these functions judge all rows of smaller heads.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  defaultSpec,
  type Lengths,
  largestError,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { pickRows, sampledReference, sampleRows } from "../../test/fixtures/attention/sampledRows.ts";
import { sequenceLists } from "../../test/fixtures/attention/sequenceLists.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import type { ResultTensor } from "../attention/index.ts";
import { encodeRows } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { numElements } from "../tensor/index.ts";
import { multiQueriesPagedAttention } from "./multiQueriesPagedAttention.ts";
import { raggedPagedAttentionV2 } from "./raggedPagedAttention.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

function stored({ spec: { storage } }: RaggedCase, shape: readonly number[], values: Float32Array): DeviceTensor {
  const { units } = encodeRows(storage, values, 1);
  const bytes = new Uint8Array(units.buffer, units.byteOffset, units.byteLength);
  return test.bytes(shape, storage as "f32", bytes);
}

function taken(tensor: ResultTensor): Float32Array {
  if (!tensor.buffer) throw new Error("the call should have allocated its result");
  const copy = test.device.f32At(tensor.pointer, numElements(tensor.shape)).slice();
  test.device.free(tensor.buffer);
  return copy;
}

function expectSampled(given: RaggedCase, out: Float32Array): void {
  const { numQHeads, headDim } = given.spec;
  // The first row of one sequence, the last of the next.
  const ends = sampleRows(given, 0).filter((_, i) => (i >> 1) % 2 === i % 2);
  const sample = sampledReference(given, ends);
  expect(largestError(pickRows(out, numQHeads, headDim, sample), sample.want.out)).toBeLessThan(1e-5);
  expect(out.every(Number.isFinite)).toBe(true);
}

const axis = <T>(values: readonly T[], i: number): T => values[i % values.length];

describe("several queries a sequence", () => {
  // 1 or 8 key/value heads with 1, 4 or 8 queries each; 128 or 256 channels, page sizes, types and the cap go round.
  const heads = [1, 8].flatMap((numKvHeads) => [1, 4, 8].map((ratio) => [numKvHeads, ratio] as const));
  const grid = heads.map(([numKvHeads, ratio], i) => ({
    ...{ numKvHeads, ratio },
    headDim: axis([128, 256], i),
    pageSize: axis([16, 32, 64], i >> 1),
    storage: axis(["f32", "bf16", "bf16", "f32"] as const, i),
    softCap: axis([undefined, 1, 1], i),
  }));

  async function expectEquals(
    { numKvHeads, ratio, ...sizes }: (typeof grid)[number],
    maxQueries: number,
    lengths: readonly Lengths[],
  ): Promise<void> {
    const { headDim, pageSize } = sizes;
    const numQHeads = numKvHeads * ratio;
    const plain = raggedCase(defaultSpec({ ...sizes, numKvHeads, numQHeads, smScale: 1 }), lengths);
    // There is no scale on the logits: queries come multiplied by it.
    const given = { ...plain, q: plain.q.map((x) => x * headDim ** -0.5) };
    const { batch } = given;
    const headsFirst = (pages: Float32Array) => {
      const slots = batch.numPages * pageSize;
      const moved = new Float32Array(pages.length);
      for (let row = 0; row < slots * numKvHeads; row++) {
        const [slot, head] = [Math.floor(row / numKvHeads), row % numKvHeads];
        moved.set(pages.subarray(row * headDim, (row + 1) * headDim), (head * slots + slot) * headDim);
      }
      return stored(given, [numKvHeads, batch.numPages, pageSize, headDim], moved);
    };
    const row = numQHeads * headDim;
    const q = new Float32Array(lengths.length * maxQueries * row).fill(Number.NaN);
    for (const [s, { queryLen }] of lengths.entries()) {
      const first = batch.queryIndptr[s];
      q.set(given.q.subarray(first * row, (first + queryLen) * row), s * maxQueries * row);
    }
    const result = await multiQueriesPagedAttention(
      test.device,
      test.f32([lengths.length, maxQueries, numQHeads, headDim], q),
      headsFirst(given.kPages),
      headsFirst(given.vPages),
      batch.kvLens.slice(0, lengths.length),
      {
        values: batch.blockTables.slice(0, lengths.length * batch.maxPages),
        shape: [lengths.length, batch.maxPages],
      },
      Int32Array.from(lengths, ({ queryLen }) => queryLen),
      { attnLogitsSoftCap: sizes.softCap },
    );
    const padded = taken(result);
    const out = new Float32Array(given.q.length);
    for (const [s, { queryLen }] of lengths.entries()) {
      const at = s * maxQueries * row;
      out.set(padded.subarray(at, at + queryLen * row), batch.queryIndptr[s] * row);
      expect(padded.subarray(at + queryLen * row, at + maxQueries * row).every((x) => x === 0)).toBe(true);
    }
    expectSampled(given, out);
  }

  it.each(grid)(
    "64 of them: $numKvHeads heads of $ratio queries and $headDim channels, pages of $pageSize, $storage, cap $softCap",
    (sizes) => {
      const longest = sizes.numKvHeads === 1 ? 2048 : 260;
      return expectEquals(
        sizes,
        64,
        [longest, 130, 64].map((kvLen) => ({ queryLen: 64, kvLen })),
      );
    },
  );

  it.each([grid[2]])("padded to 512: $numKvHeads heads of $ratio queries and $headDim channels", (sizes) =>
    expectEquals(sizes, 512, [
      { queryLen: 300, kvLen: 511 },
      { queryLen: 0, kvLen: 0 },
      { queryLen: 199, kvLen: 200 },
    ]),
  );

  it.each([grid[4]])("across blocks: $numKvHeads heads of $ratio queries and $headDim channels", (sizes) =>
    expectEquals(
      sizes,
      32,
      [255, 257, 512].map((kvLen) => ({ queryLen: 32, kvLen })),
    ),
  );
});

describe("ragged queries", () => {
  it.each([
    { numQHeads: 32, numKvHeads: 8, list: "mixed", until: 9, storage: "f32" },
    { numQHeads: 32, numKvHeads: 16, list: "basic", until: 3, storage: "bf16", slidingWindow: 128 },
    { numQHeads: 12, numKvHeads: 2, list: "prefill only", until: 9, storage: "f32", softCap: 50 },
    { numQHeads: 16, numKvHeads: 2, list: "one long decode, one long prefill", until: 3, storage: "bf16" },
    { numQHeads: 4, numKvHeads: 4, list: "decode only", until: 16, storage: "f32", slidingWindow: 5 },
    { numQHeads: 8, numKvHeads: 1, list: "prefill only", until: 8, storage: "f8e5m2", slidingWindow: 128, softCap: 50 },
  ] as const)("%o, heads of 128 channels, pages of 16", async ({ list, until, ...sizes }) => {
    const headDim = 128;
    const lengths = sequenceLists[list].slice(0, until);
    const given = raggedCase(defaultSpec({ headDim, pageSize: 16, ...sizes }), lengths, 1, 5);
    const { batch, spec, kPages, vPages } = given;
    const combined = new Float32Array(2 * kPages.length);
    for (let row = 0; row < kPages.length / headDim; row++) {
      combined.set(kPages.subarray(row * headDim, (row + 1) * headDim), 2 * row * headDim);
      combined.set(vPages.subarray(row * headDim, (row + 1) * headDim), (2 * row + 1) * headDim);
    }
    const maxSeqs = batch.kvLens.length;
    const { smScale, slidingWindow, softCap } = spec;
    const result = await raggedPagedAttentionV2(
      test.device,
      test.f32([batch.numRows, spec.numQHeads, headDim], given.q),
      stored(given, [batch.numPages, 16, 2 * spec.numKvHeads, headDim], combined),
      batch.kvLens,
      { values: batch.blockTables, shape: [maxSeqs, batch.maxPages] },
      batch.queryIndptr.slice(0, maxSeqs + 1),
      Int32Array.of(batch.numSeqs),
      { smScale, slidingWindow, softCap },
    );
    const out = taken(result);
    expectSampled(given, out);
    expect(out.subarray(batch.queryIndptr[batch.numSeqs] * spec.numQHeads * headDim).every((x) => x === 0)).toBe(true);
  });
});
