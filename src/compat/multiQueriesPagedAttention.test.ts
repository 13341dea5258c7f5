import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { largestError, numbers } from "../../test/fixtures/attention/ragged.ts";
import { makePages, reference, type Sizes, taken } from "../../test/fixtures/compat/jaxPages.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { type MultiQueriesPagedAttentionOptions, multiQueriesPagedAttention } from "./multiQueriesPagedAttention.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

describe("multiQueriesPagedAttention", () => {
  const run = async (
    sizes: Sizes,
    maxQueries: number,
    queryLens: readonly number[],
    options: MultiQueriesPagedAttentionOptions = {},
  ) => {
    const numQHeads = sizes.numKvHeads * sizes.group;
    const row = numQHeads * sizes.headDim;
    const pages = makePages(test, sizes);
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
    expect(largestError(taken(test, result), expected)).toBeLessThan(1e-5);
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
    const pages = makePages(test, sizes);
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
