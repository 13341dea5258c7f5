import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { largestError, numbers } from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import type { ResultTensor } from "../attention/index.ts";
import { attentionReference, decodeRows, encodeRows } from "../ops/attention/index.ts";
import { numElements } from "../tensor/index.ts";
import type { JaxPages, QuantizedPages } from "./jaxPages.ts";
import { type MultiQueriesPagedAttentionOptions, multiQueriesPagedAttention } from "./multiQueriesPagedAttention.ts";
import { type PagedAttentionOptions, pagedAttention } from "./pagedAttention.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

interface Sizes {
  readonly numKvHeads: number;
  readonly group: number;
  readonly headDim: number;
  readonly pageSize: number;
  readonly lengths: readonly number[];
  readonly isQuantized?: boolean;
}

/** Pages in JAX's layout, scattered; NaN in the unused ones and past the last key (as a scale, where numbers are codes). */
function makePages({ numKvHeads, headDim, pageSize, lengths, isQuantized }: Sizes) {
  const needed = lengths.map((length) => Math.ceil(length / pageSize));
  const pagesPerSequence = Math.max(1, ...needed) + 1;
  const numPages = needed.reduce((a, b) => a + b, 0) + 2;
  const order = [...numbers(9, numPages).entries()].sort(([, a], [, b]) => a - b).map(([page]) => page);
  const values = new Int32Array(lengths.length * pagesPerSequence).fill(2147480000);
  const isUsed = new Uint8Array(numPages * pageSize);
  for (const [b, length] of lengths.entries()) {
    for (let j = 0; j < needed[b]; j++) values[b * pagesPerSequence + j] = order.pop() ?? 0;
    for (let t = 0; t < length; t++)
      isUsed[values[b * pagesPerSequence + Math.floor(t / pageSize)] * pageSize + (t % pageSize)] = 1;
  }
  const shape = [numKvHeads, numPages, pageSize, headDim];
  const make = (seed: number): { tensors: JaxPages; decoded: ArrayLike<number> } => {
    const all = numbers(seed, numElements(shape));
    const unused = (row: number) => !isUsed[row % (numPages * pageSize)];
    if (!isQuantized) {
      const planted = all.map((x, i) => (unused(Math.floor(i / headDim)) ? Number.NaN : x));
      return { tensors: test.f32(shape, planted), decoded: planted };
    }
    const { units, scales } = encodeRows("i8", all, headDim);
    const planted = scales.map((x, row) => (unused(row) ? Number.NaN : x));
    const weight = test.bytes(shape, "i8", new Uint8Array(units.buffer));
    const tensors: QuantizedPages = { weight, scales: test.f32([...shape.slice(0, 3), 1], planted) };
    return { tensors, decoded: decodeRows("i8", { units, scales: planted }, headDim) };
  };
  return {
    k: make(1),
    v: make(2),
    pageIndices: { values, shape: [lengths.length, pagesPerSequence] as const },
    numPages,
  };
}

/** The ragged rows of the batch by the reference; queries [rows, numQHeads, headDim], queryLens of each sequence. */
function reference(
  sizes: Sizes,
  pages: ReturnType<typeof makePages>,
  q: Float32Array,
  queryLens: readonly number[],
  softCap?: number,
  maskValue?: number,
) {
  const { numKvHeads, group, headDim, pageSize, lengths } = sizes;
  const { numPages, pageIndices } = pages;
  const strides = { page: pageSize * headDim, slot: headDim, head: numPages * pageSize * headDim };
  const queryIndptr = Int32Array.from([0, ...queryLens]);
  for (let i = 1; i < queryIndptr.length; i++) queryIndptr[i] += queryIndptr[i - 1];
  return attentionReference(
    { headDim, numQHeads: numKvHeads * group, numKvHeads, pageSize, causal: true, smScale: 1, softCap, maskValue },
    {
      numRows: queryIndptr[lengths.length],
      numSeqs: lengths.length,
      queryIndptr,
      kvLens: Int32Array.from(lengths),
      blockTables: pageIndices.values,
      maxPages: pageIndices.shape[1],
      numPages,
      allowUnseeing: true,
    },
    { q, kPages: pages.k.decoded, vPages: pages.v.decoded, kStrides: strides, vStrides: strides },
  ).out;
}

function taken(tensor: ResultTensor): Float32Array {
  if (!tensor.buffer) throw new Error("the call should have allocated its result");
  const copy = test.device.f32At(tensor.pointer, numElements(tensor.shape)).slice();
  test.device.free(tensor.buffer);
  return copy;
}

describe("pagedAttention", () => {
  const lengths = [0, 3, 256, 513, 1023, 2048];
  const run = async (sizes: Sizes, options: PagedAttentionOptions = {}) => {
    const numQHeads = sizes.numKvHeads * sizes.group;
    const pages = makePages(sizes);
    const q = numbers(3, sizes.lengths.length * numQHeads * sizes.headDim).map((x) => x * 0.5);
    const shape = [sizes.lengths.length, numQHeads, sizes.headDim];
    const args = [
      test.f32(shape, q),
      pages.k.tensors,
      pages.v.tensors,
      Int32Array.from(sizes.lengths),
      pages.pageIndices,
    ] as const;
    const result = await pagedAttention(test.device, ...args, options);
    expect(result.shape).toEqual(shape);
    const want = reference(
      sizes,
      pages,
      q,
      sizes.lengths.map(() => 1),
      options.attnLogitsSoftCap,
    );
    expect(largestError(taken(result), Float32Array.from(want))).toBeLessThan(1e-5);
  };

  const grid = [1, 2].flatMap((numKvHeads) =>
    [1, 4].flatMap((group) =>
      [undefined, 1].flatMap((cap) => [false, true].map((int8) => [numKvHeads, group, cap, int8] as const)),
    ),
  );
  it.each(grid)(
    "equals the reference: %i heads of %i queries, soft cap %s, 8-bit pages: %s",
    (numKvHeads, group, attnLogitsSoftCap, isQuantized) =>
      run({ numKvHeads, group, headDim: 16, pageSize: 16, lengths, isQuantized }, { attnLogitsSoftCap }),
  );

  it("takes other page sizes, tuning that means nothing here, and a tensor for the result", async () => {
    const sizes = { numKvHeads: 2, group: 1, headDim: 128, pageSize: 64, lengths: lengths.slice(0, 4) };
    await run(sizes, { pagesPerComputeBlock: 2, megacoreMode: "batch", inlineSeqDim: true, maskValue: -1e5 });
    await run(sizes, { megacoreMode: "kv_head" });
    const pages = makePages(sizes);
    const q = test.f32([4, 2, 128], numbers(3, 4 * 2 * 128));
    const out = test.f32([4, 2, 128], new Float32Array(4 * 2 * 128));
    expect(
      await pagedAttention(
        test.device,
        q,
        pages.k.tensors,
        pages.v.tensors,
        Int32Array.from(sizes.lengths),
        pages.pageIndices,
        { out },
      ),
    ).toEqual(out);
  });

  it("names what does not fit", async () => {
    const sizes: Sizes = { numKvHeads: 3, group: 1, headDim: 8, pageSize: 4, lengths: [3, 5, 9] };
    const pages = makePages(sizes);
    const k = test.f32([3, pages.numPages, 4, 8], numbers(1, 3 * pages.numPages * 32));
    const codes = makePages({ ...sizes, isQuantized: true }).k.tensors as QuantizedPages;
    const good = {
      q: test.f32([3, 3, 8], numbers(3, 72)),
      k: k as JaxPages,
      v: k as JaxPages,
      lengths: Int32Array.from(sizes.lengths),
      pageIndices: pages.pageIndices,
    };
    const fails = async (
      changes: Partial<typeof good> | { lengths: unknown },
      message: string,
      options: PagedAttentionOptions = {},
    ) => {
      const { q, k, v, lengths, pageIndices } = { ...good, ...(changes as Partial<typeof good>) };
      await expect(pagedAttention(test.device, q, k, v, lengths, pageIndices, options)).rejects.toThrow(message);
    };
    const shaped = (shape: readonly number[]) => ({ ...k, shape });
    await fails({ q: { ...good.q, shape: [3, 24] } }, "q.shape = [3, 24] must be [batch, numQHeads, headDim]");
    await fails({ k: shaped([3, 4, 8]) }, "kPages.shape = [3, 4, 8] must be [numKvHeads, pages, pageSize, headDim]");
    await fails({ v: shaped([3, 1, 4, 8]) }, "vPages.shape = [3, 1, 4, 8] must be kPages.shape");
    await fails({ q: { ...good.q, shape: [3, 4, 8] } }, "numQHeads = 4 must be divisible by numKvHeads = 3");
    await fails({ q: { ...good.q, shape: [3, 3, 4] } }, "headDim of kPages = 8 must be that of q = 4");
    await fails({ lengths: Int32Array.of(1, 2) }, "lengths.length = 2 must be 3, the batch size of q");
    await fails({ lengths: [3, 5, 9] }, "lengths must be an Int32Array, got Array");
    await fails(
      { pageIndices: { values: new Int32Array(8), shape: [2, 4] } },
      "pageIndices.shape[0] = 2 must be 3, the batch size of q",
    );
    await fails({}, "pagesPerComputeBlock = 3 must divide pagesPerSequence = 4", { pagesPerComputeBlock: 3 });
    await fails({}, "pagesPerComputeBlock = 0 must divide pagesPerSequence = 4", { pagesPerComputeBlock: 0 });
    await fails({}, "numKvHeads = 3 must be even for megacoreMode = kv_head", { megacoreMode: "kv_head" });
    await fails({}, "batch = 3 must be even for megacoreMode = batch", { megacoreMode: "batch" });
    await fails({}, "megacoreMode = core must be kv_head, batch or absent", { megacoreMode: "core" as "batch" });
    await fails({}, "attnLogitsSoftCap = 0 must not be 0", { attnLogitsSoftCap: 0 });
    await fails({}, "maskValue = -1 must be at most -65504", { maskValue: -1 });
    await fails({ k: codes }, "vPages must be quantised, with scales, because the other pages are");
    await fails({ v: codes }, "kPages must be quantised, with scales, because the other pages are");
    const scales = { ...codes.scales, shape: codes.scales.shape.slice(0, 3) };
    await fails(
      { k: codes, v: { ...codes, scales } },
      `vPages.scales.shape = [${scales.shape.join(", ")}] must be [3, ${pages.numPages}, 4, 1]`,
    );
    await fails(
      { k: { ...codes, weight: { ...codes.weight, type: "u8" } }, v: codes },
      "kPages.weight.type = u8 must be i8",
    );
    await fails(
      { lengths: Int32Array.of(3, 5, 17) },
      "kvLens[2] = 17 needs 5 pages of 4 tokens, but blockTables has 4 a sequence",
    );
  });
});

describe("multiQueriesPagedAttention", () => {
  const run = async (
    sizes: Sizes,
    maxQueries: number,
    queryLens: readonly number[],
    options: MultiQueriesPagedAttentionOptions = {},
  ) => {
    const numQHeads = sizes.numKvHeads * sizes.group;
    const row = numQHeads * sizes.headDim;
    const pages = makePages(sizes);
    const q = new Float32Array(queryLens.length * maxQueries * row).fill(Number.NaN);
    const used = queryLens.map((n, b) => numbers(b + 3, n * row).map((x) => x * 0.5));
    for (const [b, values] of used.entries()) q.set(values, b * maxQueries * row);
    const shape = [queryLens.length, maxQueries, numQHeads, sizes.headDim];
    const lengths = Int32Array.from(sizes.lengths);
    const given = [
      test.f32(shape, q),
      pages.k.tensors,
      pages.v.tensors,
      lengths,
      pages.pageIndices,
      Int32Array.from(queryLens),
    ] as const;
    const result = await multiQueriesPagedAttention(test.device, ...given, options);
    expect(result.shape).toEqual(shape);
    const { attnLogitsSoftCap, maskValue } = options;
    const want = reference(
      sizes,
      pages,
      Float32Array.from(used.flatMap((x) => [...x])),
      queryLens,
      attnLogitsSoftCap,
      maskValue,
    );
    const expected = new Float32Array(q.length);
    let at = 0;
    for (const [b, n] of queryLens.entries()) {
      expected.set(want.subarray(at, at + n * row), b * maxQueries * row);
      at += n * row;
    }
    expect(largestError(taken(result), expected)).toBeLessThan(1e-5);
  };

  const grid = [16, 32, 64].flatMap((pageSize) =>
    [
      [1, 1],
      [1, 4],
      [1, 8],
      [8, 1],
    ].map(([numKvHeads, group]) => [pageSize, numKvHeads, group] as const),
  );
  it.each(grid)("equals the reference: pages of %i, %i heads of %i queries", (pageSize, numKvHeads, group) =>
    run({ numKvHeads, group, headDim: 8, pageSize, lengths: [64, 711, 1300] }, 24, [24, 24, 24], {
      attnLogitsSoftCap: group === 4 ? 1 : undefined,
    }),
  );

  it.each([16, 64])("leaves padding rows zero: pages of %i", (pageSize) =>
    run({ numKvHeads: 2, group: 4, headDim: 16, pageSize, lengths: [512, 200, 0, 77] }, 128, [128, 57, 0, 0]),
  );

  it("crosses blocks and takes tuning that means nothing here", () =>
    run({ numKvHeads: 1, group: 4, headDim: 128, pageSize: 32, lengths: [255, 257, 512] }, 16, [16, 16, 16], {
      numKvPagesPerComputeBlock: 17,
      numQueriesPerComputeBlock: 16,
    }));

  it("adds a mask value, and reads 8-bit pages", async () => {
    await run({ numKvHeads: 1, group: 2, headDim: 8, pageSize: 4, lengths: [9, 30] }, 6, [5, 6], { maskValue: -2 });
    await run({ numKvHeads: 2, group: 2, headDim: 8, pageSize: 4, lengths: [9, 30], isQuantized: true }, 6, [5, 6]);
  });

  it("names what does not fit", async () => {
    const sizes: Sizes = { numKvHeads: 2, group: 2, headDim: 8, pageSize: 4, lengths: [5, 9] };
    const pages = makePages(sizes);
    const k = test.f32([2, pages.numPages, 4, 8], numbers(1, 2 * pages.numPages * 32));
    const good = {
      q: test.f32([2, 3, 4, 8], numbers(3, 192)),
      k,
      v: k,
      lengths: Int32Array.of(5, 9),
      pageIndices: pages.pageIndices,
      queryLens: Int32Array.of(3, 2),
    };
    const fails = async (
      changes: { [K in keyof typeof good]?: unknown },
      message: string,
      options: MultiQueriesPagedAttentionOptions = {},
    ) => {
      const { q, k, v, lengths, pageIndices, queryLens } = { ...good, ...(changes as Partial<typeof good>) };
      await expect(
        multiQueriesPagedAttention(test.device, q, k, v, lengths, pageIndices, queryLens, options),
      ).rejects.toThrow(message);
    };
    await fails(
      { q: { ...good.q, shape: [6, 4, 8] } },
      "q.shape = [6, 4, 8] must be [batch, maxQueries, numQHeads, headDim]",
    );
    await fails({ v: { ...k, shape: [2, 1, 4, 8] } }, "vPages.shape = [2, 1, 4, 8] must be kPages.shape");
    await fails({ q: { ...good.q, shape: [2, 3, 8, 4] } }, "headDim of kPages = 8 must be that of q = 4");
    await fails({ q: { ...good.q, shape: [2, 3, 3, 8] } }, "numQHeads = 3 must be divisible by numKvHeads = 2");
    await fails({ lengths: Int32Array.of(5) }, "lengths.length = 1 must be 2, the batch size of q");
    await fails({ queryLens: Int32Array.of(5) }, "effectiveQLens.length = 1 must be 2, the batch size of q");
    await fails({ lengths: Uint32Array.of(5, 9) }, "lengths must be an Int32Array, got Uint32Array");
    await fails({ queryLens: [3, 2] }, "effectiveQLens must be an Int32Array, got Array");
    await fails(
      { pageIndices: { values: new Int32Array(4), shape: [1, 4] } },
      "pageIndices.shape[0] = 1 must be 2, the batch size of q",
    );
    await fails({}, "numQueriesPerComputeBlock = 4 must be at most maxQueries = 3", { numQueriesPerComputeBlock: 4 });
    await fails({}, "numKvPagesPerComputeBlock = 5 must be at most pagesPerSequence = 4", {
      numKvPagesPerComputeBlock: 5,
    });
    await fails({}, "numKvPagesPerComputeBlock = 3 must divide pagesPerSequence = 4", { numKvPagesPerComputeBlock: 3 });
    await fails({}, "numKvPagesPerComputeBlock = 0 must be positive", { numKvPagesPerComputeBlock: 0 });
    await fails({}, "attnLogitsSoftCap = 0 must not be 0", { attnLogitsSoftCap: 0 });
    await fails(
      { queryLens: Int32Array.of(4, 2) },
      "effectiveQLens[0] = 4 must be from 0 to maxQueries = 3 and lengths[0] = 5",
    );
    await fails(
      { lengths: Int32Array.of(5, 1) },
      "effectiveQLens[1] = 2 must be from 0 to maxQueries = 3 and lengths[1] = 1",
    );
    const out = test.f32([2, 3, 4, 4], new Float32Array(96));
    await fails({}, "out.shape = [2, 3, 4, 4] must be q.shape = [2, 3, 4, 8], without rowStride", { out });
    await fails(
      { pageIndices: { ...pages.pageIndices, values: pages.pageIndices.values.map(() => -1) } },
      "is not a page: the pool has",
    );
  });
});
