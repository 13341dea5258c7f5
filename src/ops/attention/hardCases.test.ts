import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  bits,
  defaultSpec,
  type Lengths,
  largestError,
  onDevice,
  onReference,
  raggedCase,
} from "../../../test/fixtures/attention/ragged.ts";
import { variantCase, variantOnDevice, variantOnReference } from "../../../test/fixtures/attention/variants.ts";
import { packVisible } from "../../attention/index.ts";
import { CpuDevice } from "../../devices/index.ts";
import type { AttentionSpec } from "./contract.ts";
import { CpuAttentionPlan, recordAttention } from "./record.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 3 });
});
afterAll(() => device.close());

/** One channel, q = 1 and smScale = 1: the keys are the logits. */
function logitsCase(lengths: readonly Lengths[], changes: Partial<AttentionSpec>, logit: (t: number) => number) {
  const spec = defaultSpec({
    headDim: 1,
    numQHeads: 2,
    numKvHeads: 1,
    pageSize: 1,
    smScale: 1,
    splitSize: 32,
    ...changes,
  });
  const given = raggedCase(spec, lengths);
  for (const [s, { kvLen }] of lengths.entries()) {
    for (let t = 0; t < kvLen; t++) given.kPages[given.batch.blockTables[s * given.batch.maxPages + t]] = logit(t);
  }
  return { ...given, q: given.q.map(() => 1) };
}

describe("logits far from 0", () => {
  const lengths = [
    { queryLen: 3, kvLen: 100 },
    { queryLen: 1, kvLen: 33 },
  ];
  const kinds: readonly Partial<AttentionSpec>[] = [{}, { slidingWindow: 40 }, { causal: false }, { lseBase: "2" }];
  const cases = [-1e4, -5e4, -1e9, -1e30, 1e4, 1e30].flatMap((size) =>
    kinds.map((changes) => [size, changes] as const),
  );

  it.each(cases)("weigh by their differences: %d, %o", async (size, changes) => {
    // Equal logits in pairs: neither a sentinel nor a skipped block may win over them.
    const given = logitsCase(lengths, changes, (t) => (t % 2 === 0 ? size : 1.001 * size));
    const expected = onReference(given);
    for (const threads of [1, 1000]) {
      const { out, lse } = await onDevice(device, given, threads);
      expect(largestError(out, expected.out)).toBeLessThanOrEqual(1e-5);
      expect([...lse].every((value, i) => Math.abs(value / expected.lse[i] - 1) < 1e-6)).toBe(true);
    }
  });

  it("of -infinity weigh nothing, and a row of nothing else is empty", async () => {
    const some = logitsCase(lengths, {}, (t) => (t % 40 < 39 ? -Infinity : 0.5));
    const none = logitsCase(lengths, { causal: false }, () => -Infinity);
    for (const given of [some, none]) {
      const [got, expected] = [await onDevice(device, given, 1000), onReference(given)];
      expect(largestError(got.out, expected.out)).toBeLessThanOrEqual(1e-5);
      expect(largestError(got.lse, expected.lse)).toBeLessThanOrEqual(1e-5);
    }
  });
});

it("a key that is alone gives its value to the bit, and its logit: nothing is added to the sum", async () => {
  const given = raggedCase(defaultSpec({ slidingWindow: 1 }), [{ queryLen: 40, kvLen: 90 }]);
  const { out, lse } = await onDevice(device, given);
  const { headDim, numQHeads, numKvHeads, pageSize = 1, smScale } = given.spec;
  for (let row = 0; row < 40; row++) {
    const position = 50 + row;
    const page = given.batch.blockTables[Math.floor(position / pageSize)];
    for (let head = 0; head < numQHeads; head++) {
      const at = (row * numQHeads + head) * headDim;
      const kvHead = Math.floor(head / (numQHeads / numKvHeads));
      const from = ((page * pageSize + (position % pageSize)) * numKvHeads + kvHead) * headDim;
      expect(bits(out.subarray(at, at + headDim))).toEqual(bits(given.vPages.subarray(from, from + headDim)));
      const dot = given.q.subarray(at, at + headDim).reduce((sum, x, d) => sum + x * given.kPages[from + d], 0);
      expect(lse[row * numQHeads + head]).toBeCloseTo(dot * smScale, 5);
    }
  }
});

it("blocks of keys may be hidden from some rows of a tile, first ones, last ones or all", async () => {
  const spec = defaultSpec({ causal: false, customMask: true, splitSize: 64, sinks: true });
  const lengths = [{ queryLen: 8, kvLen: 200 }];
  const given = variantCase({ spec }, lengths);
  const seen = [
    [0, 200],
    [33, 40],
    [64, 65],
    [199, 200],
    [0, 1],
    [100, 100],
    [32, 64],
    [96, 200],
  ];
  const customMask = packVisible({ qLens: [8], kvLens: [200] }, (_, i, t) => t >= seen[i][0] && t < seen[i][1]);
  const masked = { ...given, batch: { ...given.batch, customMask } };
  const expected = variantOnReference(masked);
  for (const threads of [1, 1000]) {
    const got = await variantOnDevice(device, masked, threads);
    expect(largestError(got.out, expected.out)).toBeLessThanOrEqual(1e-5);
    expect(largestError(got.lse, expected.lse)).toBeLessThanOrEqual(1e-5);
    expect([...got.lse.subarray(20, 24)]).toEqual(Array(4).fill(-Infinity));
  }
});

it("sequences without queries or keys change no bit of the others, wherever they stand", async () => {
  const nothing = { queryLen: 0, kvLen: 0 };
  const onlyKeys = { queryLen: 0, kvLen: 70 };
  const real = { queryLen: 3, kvLen: 150 };
  const spec = defaultSpec({ splitSize: 32 });
  const alone = await onDevice(device, raggedCase(spec, [real]), 1000);
  // The fixture fills a sequence by its place, so the batches are built from this one's pages.
  for (const before of [
    [nothing, nothing],
    [onlyKeys, nothing],
    [nothing, onlyKeys, nothing],
  ]) {
    for (const after of [[], [nothing, nothing], [onlyKeys]]) {
      const given = raggedCase(spec, [real, onlyKeys]);
      const list = [...before, real, ...after];
      const { maxPages } = given.batch;
      const batch = {
        ...given.batch,
        numRows: 3,
        numSeqs: list.length,
        queryIndptr: Int32Array.from({ length: list.length + 1 }, (_, s) => (s > before.length ? 3 : 0)),
        kvLens: Int32Array.from(list, ({ kvLen }) => kvLen),
        blockTables: Int32Array.from(
          list.flatMap((sequence) => [
            ...given.batch.blockTables.subarray(sequence === real ? 0 : maxPages).subarray(0, maxPages),
          ]),
        ),
      };
      for (const threads of [1, 4, 1000]) {
        const got = await onDevice(device, { ...given, batch, q: given.q.subarray(0, alone.out.length) }, threads);
        expect(bits(got.out)).toEqual(bits(alone.out));
        expect(bits(got.lse)).toEqual(bits(alone.lse));
      }
    }
  }
});

it("a page may belong to several sequences, in whole or in part", async () => {
  const spec = defaultSpec({ splitSize: 32 });
  const given = raggedCase(spec, [
    { queryLen: 2, kvLen: 61 },
    { queryLen: 2, kvLen: 61 },
  ]);
  const { maxPages } = given.batch;
  const tables = given.batch.blockTables.slice();
  // The second sequence has the first one's pages, and sees less of the last ones.
  tables.copyWithin(maxPages, 0, maxPages);
  const batch = { ...given.batch, blockTables: tables, kvLens: Int32Array.of(61, 46) };
  const [got, expected] = [await onDevice(device, { ...given, batch }, 1000), onReference({ ...given, batch })];
  expect(largestError(got.out, expected.out)).toBeLessThanOrEqual(1e-5);
  expect(largestError(got.lse, expected.lse)).toBeLessThanOrEqual(1e-5);
});

it("pages may begin more than 2 GiB after the first one", async () => {
  const spec = defaultSpec({ headDim: 256, numKvHeads: 8, numQHeads: 8, pageSize: 64 });
  const far = 4097;
  const pageElements = 64 * 8 * 256;
  const small = raggedCase(spec, [{ queryLen: 2, kvLen: 50 }]);
  const expected = onReference(small);
  const big = await CpuDevice.create({ threads: 2 });
  try {
    const upload = (values: Float32Array): number => {
      const buffer = big.allocate(values.byteLength, "test");
      big.f32(buffer).set(values);
      return buffer.pointer;
    };
    const [q, out] = [upload(small.q), upload(new Float32Array(small.q.length))];
    const lse = upload(new Float32Array(16));
    const page = small.batch.blockTables[0] * pageElements;
    const used = (pages: Float32Array): Float32Array => pages.subarray(page, page + pageElements);
    // Keys in the last page of the pool, values in the one before: only these are ever touched.
    const pool = big.allocate((far + 1) * pageElements * 4, "pages").pointer;
    big.f32At(pool + far * pageElements * 4, pageElements).set(used(small.kPages));
    big.f32At(pool + (far - 1) * pageElements * 4, pageElements).set(used(small.vPages));
    const plan = new CpuAttentionPlan(big, spec);
    plan.update({ ...small.batch, blockTables: Int32Array.of(far - 1), maxPages: 1, numPages: far });
    const commands = big.commands();
    const kPages = pool + pageElements * 4;
    recordAttention({ device: big, commands }, plan, { q, kPages, vPages: pool, out, lse });
    await big.run(commands);
    expect((far - 1) * pageElements * 4).toBeGreaterThan(2 ** 31 - 1);
    expect(largestError(big.f32At(out, small.q.length).slice(), expected.out)).toBeLessThanOrEqual(1e-5);
    expect(largestError(big.f32At(lse, 16).slice(), expected.lse)).toBeLessThanOrEqual(1e-5);
  } finally {
    await big.close();
  }
});
