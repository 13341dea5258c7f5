import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Lengths, largestError, numbers } from "../../test/fixtures/attention/ragged.ts";
import { complexSequences, sequenceLists } from "../../test/fixtures/attention/sequenceLists.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import type { ResultTensor } from "../attention/index.ts";
import {
  attentionReference,
  decodeRows,
  type ElementStorage,
  encodeRows,
  type StorageUnits,
} from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import { bf16FromF32, f16FromF32 } from "../tensor/index.ts";
import {
  type RaggedPagedAttentionV3Options,
  raggedPagedAttentionV3,
  raggedPagedAttentionV3Hd64,
} from "./raggedPagedAttentionV3.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

interface Shape {
  readonly numQHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly pageSize: number;
  readonly storage: ElementStorage;
  /** Rows and channels of a slot of the cache, as [rows / pack, pack, channels]. */
  readonly slot: readonly [number, number, number];
  /** Elements from one head to the next, and from a key to its value. */
  readonly headStride: number;
  readonly valueOffset: number;
}

const align = (n: number, to: number) => Math.ceil(n / to) * to;

function shapeOf(
  heads: readonly [number, number],
  headDim: number,
  changes: Partial<Shape> & { pack?: number } = {},
): Shape {
  const [numQHeads, numKvHeads] = heads;
  const { pack = 1, ...others } = changes;
  const channels = align(headDim, 128);
  const slot = [align(2 * numKvHeads, pack) / pack, pack, channels] as const;
  const strides = { headStride: 2 * channels, valueOffset: channels };
  return { numQHeads, numKvHeads, headDim, pageSize: 16, storage: "f32", slot, ...strides, ...others };
}

/** A step: what is in the cache before, the new tokens, and what must come out. */
function makeStep(shape: Shape, lengths: readonly Lengths[]) {
  const { numQHeads, numKvHeads, headDim, pageSize, storage, slot } = shape;
  const needed = lengths.map(({ kvLen }) => Math.ceil(kvLen / pageSize));
  const numPages = needed.reduce((a, b) => a + b, 0) + 3;
  const order = [...numbers(5, numPages).entries()].sort(([, a], [, b]) => a - b).map(([page]) => page);
  const maxSeqs = lengths.length + 2;
  const pagesPerSeq = Math.max(...needed) + 1;
  const pageIndices = new Int32Array(maxSeqs * pagesPerSeq).fill(2147480000);
  const kvLens = new Int32Array(maxSeqs).fill(1 << 30);
  const cuQLens = new Int32Array(maxSeqs + 1).fill(-9);
  cuQLens[0] = 0;
  const slotElements = slot[0] * slot[1] * slot[2];
  // NaN wherever no token is that was written before.
  const cache = new Float32Array(numPages * pageSize * slotElements).fill(Number.NaN);
  const place = (page: number, offset: number, head: number) =>
    (page * pageSize + offset) * slotElements + head * shape.headStride;
  const slots: [number, number][] = [];
  for (const [s, { queryLen, kvLen }] of lengths.entries()) {
    kvLens[s] = kvLen;
    cuQLens[s + 1] = cuQLens[s] + queryLen;
    for (let j = 0; j < needed[s]; j++) pageIndices[s * pagesPerSeq + j] = order.pop() ?? 0;
    for (let t = 0; t < kvLen; t++) {
      const [page, offset] = [pageIndices[s * pagesPerSeq + Math.floor(t / pageSize)], t % pageSize];
      if (t >= kvLen - queryLen) slots.push([page, offset]);
      else {
        for (let h = 0; h < numKvHeads; h++) {
          const at = place(page, offset, h);
          cache.set(numbers(t * 64 + h + s, headDim), at);
          cache.set(numbers(t * 64 + h + s + 7, headDim), at + shape.valueOffset);
        }
      }
    }
  }
  const numRows = slots.length + 4;
  const rows = (seed: number, heads: number) => {
    const values = new Float32Array(numRows * heads * headDim).fill(Number.NaN);
    values.set(numbers(seed, slots.length * heads * headDim));
    return values;
  };
  const [q, k, v] = [rows(1, numQHeads), rows(2, numKvHeads), rows(3, numKvHeads)];
  const before = encodeRows(storage, cache, headDim <= slot[2] ? slot[2] : headDim).units;
  const after = before.slice();
  // Row by row: the scatter that the cache must equal, bit for bit.
  for (const [row, [page, offset]] of slots.entries()) {
    for (let h = 0; h < numKvHeads; h++) {
      const from = (row * numKvHeads + h) * headDim;
      const write = (x: Float32Array, at: number) =>
        after.set(encodeRows(storage, x.subarray(from, from + headDim), headDim).units, at);
      write(k, place(page, offset, h));
      write(v, place(page, offset, h) + shape.valueOffset);
    }
  }
  const numSeqs = lengths.length;
  const kvCacheShape = [numPages, pageSize, ...slot];
  const upload = () => ({
    queries: test.f32([numRows, numQHeads, headDim], q),
    keys: test.f32([numRows, numKvHeads, headDim], k),
    values: test.f32([numRows, numKvHeads, headDim], v),
    kvCache: test.bytes(kvCacheShape, storage as "f32", bytesOf(before)),
    kvLens,
    pageIndices,
    cuQLens,
    distribution: Int32Array.of(lengths.filter(({ queryLen }) => queryLen === 1).length, numSeqs, numSeqs),
  });
  const reference = (options: RaggedPagedAttentionV3Options, units: StorageUnits, sinks?: Float32Array) => {
    const { smScale = 1, slidingWindow, softCap, qScale, kScale = 1, vScale, useCausalMask = true } = options;
    const pages = decodeRows(storage, { units, scales: new Float32Array() }, slot[2]);
    const strides = { page: pageSize * slotElements, slot: slotElements, head: shape.headStride };
    const rounded = qScale
      ? decodeRows(
          storage,
          encodeRows(
            storage,
            q.map((x) => x / qScale),
            headDim,
          ),
          headDim,
        )
      : q;
    return attentionReference(
      { headDim, numQHeads, numKvHeads, pageSize, causal: useCausalMask, smScale, slidingWindow, softCap },
      { numRows, numSeqs, queryIndptr: cuQLens, kvLens, blockTables: pageIndices, maxPages: pagesPerSeq, numPages },
      {
        q: rounded,
        kPages: pages,
        vPages: pages,
        vOffset: shape.valueOffset,
        kStrides: strides,
        vStrides: strides,
        kScale: kScale * (qScale ?? 1),
        vScale,
        sinks,
      },
    ).out;
  };
  return { numRows, numTokens: slots.length, before, after, upload, reference };
}
type Step = ReturnType<typeof makeStep>;
type Arguments = ReturnType<Step["upload"]>;

const bytesOf = (units: StorageUnits) => new Uint8Array(units.buffer, units.byteOffset, units.byteLength);

const v3 = (a: Arguments, options?: RaggedPagedAttentionV3Options) =>
  raggedPagedAttentionV3(
    test.device,
    a.queries,
    a.keys,
    a.values,
    a.kvCache,
    a.kvLens,
    a.pageIndices,
    a.cuQLens,
    a.distribution,
    options,
  );
const hd64 = (a: Arguments, sink?: DeviceTensor, options?: RaggedPagedAttentionV3Options) =>
  raggedPagedAttentionV3Hd64(
    test.device,
    a.queries,
    a.keys,
    a.values,
    a.kvCache,
    a.kvLens,
    a.pageIndices,
    a.cuQLens,
    a.distribution,
    sink,
    options,
  );

/** A copy of an allocated result, which is freed. */
function taken(tensor: ResultTensor): Float32Array {
  if (!tensor.buffer) throw new Error("the call should have allocated its result");
  const copy = test.device
    .f32At(
      tensor.pointer,
      tensor.shape.reduce((a, b) => a * b, 1),
    )
    .slice();
  test.device.free(tensor.buffer);
  return copy;
}

function expectStep(step: Step, out: Float32Array, want: Float64Array, cache: DeviceTensor): void {
  expect(largestError(out, Float32Array.from(want))).toBeLessThan(1e-5);
  const perRow = out.length / step.numRows;
  expect(out.subarray(step.numTokens * perRow).every((x) => x === 0)).toBe(true);
  expect(Buffer.compare(test.readBytes(cache), bytesOf(step.after))).toBe(0);
}

async function expectEquals(shape: Shape, lengths: readonly Lengths[], options: RaggedPagedAttentionV3Options = {}) {
  const step = makeStep(shape, lengths);
  const args = step.upload();
  const result = await v3(args, options);
  expect(result.kvCache).toBe(args.kvCache);
  expectStep(step, taken(result.out), step.reference(options, step.after), args.kvCache);
}

describe("ragged paged attention, version 3", () => {
  it.each(Object.entries(sequenceLists))("writes the cache and equals the reference: %s", (_name, lengths) =>
    expectEquals(shapeOf([2, 1], 8), lengths.slice(0, 9), { smScale: 0.35 }),
  );

  it.each([
    [[12, 2], 80, 1],
    [[5, 1], 240, 2],
    [[3, 3], 128, 4],
  ] as const)("of %j heads of %i channels, packed by %i", (heads, headDim, pack) =>
    expectEquals(shapeOf(heads, headDim, { pack }), complexSequences(5), { smScale: 0.1 }),
  );

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("rounds to a cache of %s", (storage) =>
    expectEquals(shapeOf([4, 2], 24, { storage, pack: 2 }), complexSequences(3), {
      smScale: 0.2,
      qScale: 0.5,
      kScale: 0.7,
      vScale: 1.5,
    }),
  );

  it.each<RaggedPagedAttentionV3Options>([
    { slidingWindow: 5, softCap: 3 },
    { slidingWindow: 128, maskValue: -1e9 },
    { useCausalMask: false },
    { useCausalMask: false, skipKvMask: true, softCap: 50 },
    { qScale: 0.5 },
    { chunkPrefillSize: 8, dBlockSizes: [1, 64, 1, 32], vmemLimitBytes: 1, maskValue: -Infinity },
  ])("with %o", (options) => expectEquals(shapeOf([4, 2], 16), complexSequences(4), { smScale: 0.25, ...options }));

  it("scales logits by 1 unless told otherwise", () => expectEquals(shapeOf([2, 2], 4), [{ queryLen: 3, kvLen: 20 }]));

  it("reads another layer's cache and leaves it as it is, whatever the keys", async () => {
    const step = makeStep(shapeOf([4, 2], 16), complexSequences(4));
    const options = { smScale: 0.25 };
    const writer = step.upload();
    const first = taken((await v3(writer, options)).out);
    const nothing = test.f32(writer.keys.shape, new Float32Array(step.numRows * 2 * 16).fill(Number.NaN));
    const shared = await v3({ ...writer, keys: nothing, values: nothing }, { ...options, updateKvCache: false });
    expect(taken(shared.out)).toEqual(first);
    expectStep(step, first, step.reference(options, step.after), writer.kvCache);
  });

  it.each([false, true])("keeps keys and values of 64 channels in one row, sinks: %s", async (hasSinks) => {
    const slot = [4, 1, 128] as const;
    const shape = shapeOf([8, 4], 64, { slot, headStride: 128, valueOffset: 64, storage: "bf16" });
    const step = makeStep(shape, complexSequences(5));
    const args = step.upload();
    const sinks = Float32Array.of(1, -1, 0, 3, 2, -2, 0.5, 5);
    const options = { smScale: 0.125, slidingWindow: 40 };
    const { out, kvCache } = await hd64(args, hasSinks ? test.f32([8], sinks) : undefined, options);
    expectStep(step, taken(out), step.reference(options, step.after, hasSinks ? sinks : undefined), kvCache);
  });

  it.each([
    ["f16", f16FromF32],
    ["bf16", bf16FromF32],
  ] as const)("returns %s", async (outDtype, convert) => {
    const step = makeStep(shapeOf([2, 1], 8), [{ queryLen: 3, kvLen: 20 }]);
    const args = step.upload();
    const expected = convert(taken((await v3(args)).out));
    const { usedBytes } = test.device.stats();
    const { out } = await v3(args, { outDtype });
    expect(out).toMatchObject({ type: outDtype, shape: args.queries.shape });
    expect(test.device.u16At(out.pointer, expected.length).slice()).toEqual(expected);
    if (out.buffer) test.device.free(out.buffer);
    expect(test.device.stats().usedBytes).toBe(usedBytes);
    const given = test.bytes(args.queries.shape, outDtype, new Uint16Array(expected.length));
    expect((await v3(args, { outDtype, out: given })).out).toBe(given);
    expect(new Uint16Array(test.readBytes(given).buffer)).toEqual(expected);
  });
});

describe("ragged paged attention, version 3, refuses", () => {
  const good = () =>
    makeStep(shapeOf([4, 2], 16, { pageSize: 4 }), [
      { queryLen: 1, kvLen: 3 },
      { queryLen: 4, kvLen: 9 },
    ]).upload();
  const fails = async (
    changes: (args: Arguments) => Partial<Record<keyof Arguments, unknown>>,
    message: string,
    options: RaggedPagedAttentionV3Options = {},
  ) => {
    const args = good();
    const { usedBytes } = test.device.stats();
    const before = test.readBytes(args.kvCache);
    await expect(v3({ ...args, ...(changes(args) as Partial<Arguments>) }, options)).rejects.toThrow(message);
    expect(Buffer.compare(test.readBytes(args.kvCache), before)).toBe(0);
    expect(test.device.stats().usedBytes).toBe(usedBytes);
  };
  const no = () => ({});
  // Kernels and scratch stay: with them made, a call that fails must leave no memory taken.
  beforeAll(async () => {
    taken((await v3(good())).out);
    test.clear();
  });

  it("masks that contradict each other", async () => {
    await fails(no, "skipKvMask = true must not be used with useCausalMask = true", { skipKvMask: true });
    await fails(no, "slidingWindow = 4 must be used with useCausalMask = true", {
      slidingWindow: 4,
      useCausalMask: false,
    });
    await fails(no, "maskValue = -100 must be at most -65504", { maskValue: -100 });
  });

  it("tensors that do not fit together", async () => {
    const reshaped =
      (name: "queries" | "keys" | "values" | "kvCache", shape: readonly number[]) => (args: Arguments) => ({
        [name]: { ...args[name], shape },
      });
    await fails(reshaped("queries", [9, 64]), "queries.shape = [9, 64] must be [maxTokens, numQHeads, headDim]");
    await fails(reshaped("keys", [9, 2]), "keys.shape = [9, 2] must be [maxTokens, numKvHeads, headDim]");
    await fails(reshaped("values", [9, 2]), "values.shape = [9, 2] must be [maxTokens, numKvHeads, headDim]");
    await fails(reshaped("values", [9, 1, 16]), "values.shape = [9, 1, 16] must be keys.shape = [9, 2, 16]");
    await fails(reshaped("queries", [8, 4, 16]), "keys.shape[0] = 9 must be queries.shape[0] = 8");
    await fails(reshaped("queries", [9, 4, 8]), "keys.shape[2] = 16 must be queries.shape[2] = 8");
    await fails(reshaped("queries", [9, 3, 16]), "numQHeads = 3 must be divisible by numKvHeads = 2");
    await fails(
      reshaped("kvCache", [7, 4, 4, 128]),
      "kvCache.shape = [7, 4, 4, 128] must be [pages, pageSize, rows / pack, pack, channels]",
    );
    await fails(reshaped("kvCache", [7, 4, 4, 1, 64]), "kvCache.shape = [7, 4, 4, 1, 64] must be [7, 4, 4, 1, 128]");
    await fails(reshaped("kvCache", [7, 4, 1, 3, 128]), "kvCache.shape = [7, 4, 1, 3, 128] must be [7, 4, 2, 3, 128]");
    await fails(reshaped("kvCache", [7, 4, 2, 0, 128]), "pack = 0 of kvCache.shape[3] must be at least 1");
    await fails(reshaped("kvCache", [7, 3, 2, 2, 128]), "pageSize = 3 must be divisible by pack = 2");
    await fails(
      ({ kvCache }) => ({ kvCache: { ...kvCache, type: "i8" } }),
      "kvCache.type = i8 must be a floating-point type",
    );
    await fails(({ keys }) => ({ keys: { ...keys, type: "f16" } }), "keys.type = f16 must be f32");
    const out = test.f32([1, 4, 16], new Float32Array(64));
    await fails(no, "out must have shape [at least 9, 4, 16], got [1, 4, 16]", { out });
    await fails(no, "out must be a dense f16 [9, 4, 16], got f32 [1, 4, 16]", { out, outDtype: "f16" });
  });

  it("integer arrays of another type or length", async () => {
    await fails(() => ({ kvLens: [3, 9] }), "kvLens must be an Int32Array, got Array");
    await fails(() => ({ pageIndices: new Uint32Array(16) }), "pageIndices must be an Int32Array, got Uint32Array");
    await fails(() => ({ cuQLens: new Float32Array(5) }), "cuQLens must be an Int32Array, got Float32Array");
    await fails(() => ({ distribution: [1, 2, 2] }), "distribution must be an Int32Array, got Array");
    await fails(
      () => ({ pageIndices: new Int32Array(17) }),
      "pageIndices.length = 17 must be divisible by maxSeqs = 4",
    );
    await fails(() => ({ cuQLens: new Int32Array(4) }), "cuQLens.length = 4 must be 5");
    await fails(() => ({ distribution: new Int32Array(2) }), "distribution.length = 2 must be 3");
  });

  it("numbers that mean nothing", async () => {
    for (const name of ["slidingWindow", "chunkPrefillSize", "vmemLimitBytes", "qScale", "kScale", "vScale"]) {
      await fails(no, `${name} = 0 must be positive`, { [name]: 0 });
    }
    await fails(no, "softCap = 0 must not be 0", { softCap: 0 });
    await fails(no, "dBlockSizes: bq = 3 must be divisible by a positive bqCompute, got 2", {
      dBlockSizes: [3, 8, 2, 8],
    });
    await fails(no, "pBlockSizes: bkv = 8 must be divisible by a positive bkvCompute, got 0", {
      pBlockSizes: [2, 8, 2, 0],
    });
    await fails(no, "mBlockSizes: bkv = 6 must be divisible by pageSize = 4", { mBlockSizes: [2, 6, 2, 3] });
    await fails(no, "mBlockSizes: bkvCompute = 2 must be divisible by pageSize = 4", { mBlockSizes: [2, 8, 2, 2] });
  });

  it("lengths and pages that do not fit together, of the sequences that there are", async () => {
    for (const distribution of [
      [2, 1, 2],
      [0, 2, 1],
      [-1, 0, 1],
      [0, 0, 5],
    ]) {
      await fails(
        () => ({ distribution: Int32Array.from(distribution) }),
        `distribution = [${distribution.join(", ")}] must rise from at least 0 to at most maxSeqs = 4`,
      );
    }
    const lens = (name: "kvLens" | "cuQLens", values: readonly number[]) => (args: Arguments) => {
      const changed = args[name].slice();
      changed.set(values);
      return { [name]: changed };
    };
    await fails(lens("cuQLens", [0, 1, 10]), "cuQLens[numSeqs] = 10 must be at most maxTokens = 9");
    await fails(lens("kvLens", [3, 2]), "qLen = 4 must be from 1 to kvLens[1] = 2 at sequence 1");
    await fails(lens("cuQLens", [0, 0, 5]), "qLen = 0 must be from 1 to kvLens[0] = 3 at sequence 0");
    await fails(lens("kvLens", [3, 17]), "pagesPerSeq = 4 must be at least 5 for kvLens[1] = 17 and pageSize = 4");
    await fails(
      ({ pageIndices }) => ({ pageIndices: pageIndices.map((page, i) => (i === 4 ? -1 : page)) }),
      "blockTables[1][0] = -1 is not a page: the pool has 7",
    );
  });

  it("heads of another size than 64 where rows are shared", async () => {
    const args = makeStep(shapeOf([4, 2], 16, { slot: [2, 1, 128], headStride: 128, valueOffset: 64 }), [
      { queryLen: 1, kvLen: 3 },
    ]).upload();
    await expect(hd64(args)).rejects.toThrow("headDim = 16 of queries must be 64");
    await expect(hd64({ ...args, kvCache: { ...args.kvCache, shape: [4, 16, 4, 1, 128] } })).rejects.toThrow(
      "kvCache.shape = [4, 16, 4, 1, 128] must be [4, 16, 2, 1, 128]",
    );
  });
});
