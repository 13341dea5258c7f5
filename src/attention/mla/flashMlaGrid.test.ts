/** FlashMLA's and FlashInfer's tests of latent attention at their own sizes: a latent of 512 and 64 rope channels. Some rows are judged. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  defaultSpec,
  type Lengths,
  largestError,
  onDevice,
  raggedCase,
} from "../../../test/fixtures/attention/ragged.ts";
import { pickRows, sampledReference, sampleRows } from "../../../test/fixtures/attention/sampledRows.ts";
import { CpuDevice } from "../../devices/index.ts";

/** Lengths around the mean, one of them 0, as the original's varlen. */
const varied = (batchSize: number, queryLen: number, kvLen: number): readonly Lengths[] =>
  Array.from({ length: batchSize }, (_, s) => {
    if (s === 2) return { queryLen: 0, kvLen: 0 };
    const length = Math.max(queryLen, s === 0 ? kvLen : Math.round(kvLen * (0.4 + ((s * 37) % 100) / 90)));
    return { queryLen, kvLen: length };
  });

interface Sizes {
  readonly batchSize: number;
  readonly queryLen: number;
  readonly kvLen: number;
  readonly numHeads: number;
  readonly pageSize: number;
  readonly causal: boolean;
}

// Every value of each axis; the ones that cost most meet only few of the others.
const grid: readonly Sizes[] = (
  [
    [1, 1, 140, 1, 64, true],
    [2, 2, 20, 3, 64, false],
    [6, 4, 140, 9, 64, true],
    [1, 2, 4096, 128, 64, true],
    [1, 4, 20, 63, 64, true],
    [6, 2, 20, 126, 64, true],
    [64, 1, 20, 64, 64, false],
    // FlashInfer's: odd numbers of queries up to 17, tokens that pages do not divide, pages of 1, many sequences.
    [2, 17, 114, 16, 16, false],
    [1, 11, 514, 64, 16, true],
    [1, 3, 2743, 16, 1, true],
    [157, 1, 17, 16, 1, true],
  ] as const
).map(([batchSize, queryLen, kvLen, numHeads, pageSize, causal]) => ({
  ...{ batchSize, queryLen, kvLen, numHeads, pageSize, causal },
}));

describe("latent attention at the sizes of the originals' tests", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 2 });
  });
  afterAll(() => device.close());

  it.each(grid)(
    "$batchSize sequences of $queryLen queries and $kvLen keys, $numHeads heads, pages of $pageSize, causal $causal",
    async ({ batchSize, queryLen, kvLen, numHeads, pageSize, causal }) => {
      const [rank, ropeDim] = [512, 64];
      const spec = defaultSpec({
        ...{ headDim: rank + ropeDim, headDimV: rank, mla: { ropeDim }, numQHeads: numHeads, numKvHeads: 1 },
        ...{ pageSize, causal, smScale: 192 ** -0.5 },
      });
      const given = raggedCase(spec, varied(batchSize, queryLen, kvLen), 1, 3);
      const got = await onDevice(device, given);
      const rows = sampleRows(given, 0);
      const few = rows.length > 4 ? rows.filter((_, i) => i % Math.ceil(rows.length / 4) === 0) : rows;
      const heads = [...new Set([numHeads >> 1, numHeads - 1])];
      const sample = sampledReference(given, few, heads);
      const out = pickRows(got.out, numHeads, rank, sample);
      expect(largestError(out, sample.want.out)).toBeLessThan(5e-6);
      expect(largestError(pickRows(got.lse, numHeads, 1, sample), sample.want.lse)).toBeLessThan(5e-6);
      // FlashMLA's own measure, 1 - 2 <x, y> / (|x|^2 + |y|^2); it accepts 5e-6.
      let [product, squares] = [0, 0];
      for (const [i, x] of out.entries()) {
        product += 2 * x * sample.want.out[i];
        squares += x * x + sample.want.out[i] ** 2;
      }
      expect(1 - product / squares).toBeLessThan(1e-11);
      expect(got.out.every(Number.isFinite)).toBe(true);
      expect(got.out.subarray(-3 * numHeads * rank).every((x) => x === 0)).toBe(true);
    },
  );
});
