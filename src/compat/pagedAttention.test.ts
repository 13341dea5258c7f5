import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { largestError, numbers } from "../../test/fixtures/attention/ragged.ts";
import { makePages, reference, type Sizes, taken } from "../../test/fixtures/compat/jaxPages.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import type { JaxPages, QuantizedPages } from "./jaxPages.ts";
import { type PagedAttentionOptions, pagedAttention } from "./pagedAttention.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

describe("pagedAttention", () => {
  const lengths = [0, 3, 256, 513, 1023, 2048];
  const run = async (sizes: Sizes, options: PagedAttentionOptions = {}) => {
    const numQHeads = sizes.numKvHeads * sizes.group;
    const pages = makePages(test, sizes);
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
    expect(largestError(taken(test, result), Float32Array.from(want))).toBeLessThan(1e-5);
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
    const pages = makePages(test, sizes);
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
    const pages = makePages(test, sizes);
    const k = test.f32([3, pages.numPages, 4, 8], numbers(1, 3 * pages.numPages * 32));
    const codes = makePages(test, { ...sizes, isQuantized: true }).k.tensors as QuantizedPages;
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
