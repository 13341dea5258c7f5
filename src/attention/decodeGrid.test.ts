/** The grid of vLLM's tests of its paged attention kernels: one query a sequence, in one pass and split over the keys. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { stored } from "../../test/fixtures/attention/pageForms.ts";
import { defaultSpec, largestError, onReference, raggedCase } from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { alibiSlopes } from "../compat/index.ts";
import { BatchAttention } from "./batchAttention.ts";
import { freeResult } from "./results.ts";

// Other types than f32 for the fewer key/value heads: they are slow to encode.
const storages = [["f32"], ["f16", "f8e4m3", "f32", "bf16", "f8e5m2"]] as const;
const grid = (
  [
    [40, 40],
    [64, 8],
  ] as const
).flatMap(([numQHeads, numKvHeads], h) =>
  [64, 80, 96, 112, 120, 128, 192, 256].map((headDim, i) => ({
    numQHeads,
    numKvHeads,
    headDim,
    pageSize: [8, 16, 32][(2 * i + h) % 3],
    alibi: (i >> 1) % 2 === h,
    storage: storages[h][i % storages[h].length],
  })),
);

describe("paged decode on vLLM's grid", () => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create({ threads: 3 });
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(grid)(
    "$numQHeads heads on $numKvHeads of $headDim, pages of $pageSize, $storage, ALiBi $alibi",
    async (sizes) => {
      const { numQHeads, numKvHeads, headDim, pageSize, storage, alibi } = sizes;
      const kvLens = [1, 40, 7, 66, 12, 33, 20].map((kvLen) => kvLen + (headDim % 7));
      const lengths = kvLens.map((kvLen) => ({ queryLen: 1, kvLen }));
      const spec = defaultSpec({ numQHeads, numKvHeads, headDim, pageSize, storage, alibi });
      const slopes = alibi ? alibiSlopes(numQHeads) : undefined;
      const given = { ...raggedCase(spec, lengths), alibiSlopes: slopes };
      const shape = [given.batch.numPages, pageSize, numKvHeads, headDim];
      const [k, v] = [given.kPages, given.vPages].map((pages) => stored(test, storage, shape, pages).tensor);
      const args = {
        q: test.f32([7, numQHeads, headDim], given.q),
        cache: { k, v },
        alibiSlopes: slopes && test.f32([numQHeads], slopes),
        kScale: 0.8,
        vScale: 1.25,
      };
      const run = async (splitSize: number) => {
        const attention = new BatchAttention(test.device, { ...spec, splitSize });
        attention.plan(given.batch);
        const result = await attention.run(args);
        const copy = test.device.f32At(result.out.pointer, given.q.length).slice();
        const lse = test.device.f32At(result.lse?.pointer ?? 0, 7 * numQHeads).slice();
        freeResult(test.device, result);
        attention.release();
        return { out: copy, lse };
      };
      const [whole, split] = [await run(4096), await run(32)];
      const want = onReference({ ...given, kScale: 0.8, vScale: 1.25 });
      for (const got of [whole, split]) {
        expect(largestError(got.out, want.out)).toBeLessThan(1e-5);
        expect(largestError(got.lse, want.lse)).toBeLessThan(1e-5);
      }
      expect(largestError(split.out, whole.out)).toBeLessThan(1e-5);
    },
  );
});
