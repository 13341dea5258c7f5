import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  defaultSpec,
  type Lengths,
  largestError,
  onReference,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { complexSequences, sequenceLists } from "../../test/fixtures/attention/sequenceLists.ts";
import { bitsOf, TestDevice } from "../../test/ops/testDevice.ts";
import type { ResultTensor } from "../attention/index.ts";
import { type AttentionSpec, encodeRows } from "../ops/attention/index.ts";
import type { DeviceTensor } from "../ops/elementwise/index.ts";
import type { PageTable } from "./int32Arrays.ts";
import {
  type RaggedPagedAttentionV1Options,
  type RaggedPagedAttentionV2Options,
  raggedPagedAttentionV1,
  raggedPagedAttentionV2,
} from "./raggedPagedAttention.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

interface Arguments {
  readonly q: DeviceTensor;
  readonly kPages: DeviceTensor;
  readonly vPages: DeviceTensor;
  readonly kvPages: DeviceTensor;
  readonly kvLens: Int32Array;
  readonly pageIndices: PageTable;
  readonly cuQLens: Int32Array;
  readonly numSeqs: Int32Array;
}

/** The arguments of a call; garbage follows the last sequence, NaN its keys and the last query. */
function argumentsOf({ spec, batch, q, kPages, vPages }: RaggedCase): Arguments {
  const { headDim, numKvHeads, pageSize = 1, storage } = spec;
  const maxNumSeqs = batch.kvLens.length;
  const shape = [batch.numPages, pageSize, numKvHeads, headDim];
  const combined = new Float32Array(2 * kPages.length);
  for (let row = 0; row < kPages.length / headDim; row++) {
    combined.set(kPages.subarray(row * headDim, (row + 1) * headDim), 2 * row * headDim);
    combined.set(vPages.subarray(row * headDim, (row + 1) * headDim), (2 * row + 1) * headDim);
  }
  const upload = (dims: readonly number[], values: Float32Array) => {
    const { units } = encodeRows(storage, values, headDim);
    return test.bytes(dims, storage as "f32", new Uint8Array(units.buffer));
  };
  return {
    q: test.f32([batch.numRows, spec.numQHeads, headDim], q),
    kPages: upload(shape, kPages),
    vPages: upload(shape, vPages),
    kvPages: upload([batch.numPages, pageSize, 2 * numKvHeads, headDim], combined),
    kvLens: batch.kvLens,
    pageIndices: { values: batch.blockTables, shape: [maxNumSeqs, batch.maxPages] as const },
    cuQLens: batch.queryIndptr.slice(0, maxNumSeqs + 1),
    numSeqs: Int32Array.of(batch.numSeqs),
  };
}

const v1 = (
  { q, kPages, vPages, kvLens, pageIndices, cuQLens, numSeqs }: Arguments,
  options?: RaggedPagedAttentionV1Options,
) => raggedPagedAttentionV1(test.device, q, kPages, vPages, kvLens, pageIndices, cuQLens, numSeqs, options);
const v2 = (
  { q, kvPages, kvLens, pageIndices, cuQLens, numSeqs }: Arguments,
  options?: RaggedPagedAttentionV2Options,
) => raggedPagedAttentionV2(test.device, q, kvPages, kvLens, pageIndices, cuQLens, numSeqs, options);

async function taken(result: Promise<ResultTensor>): Promise<Float32Array> {
  const tensor = await result;
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

/** Both versions on the same content give the same bits, and the reference's values. */
async function expectEquals(
  spec: AttentionSpec,
  lengths: readonly Lengths[],
  options: RaggedPagedAttentionV2Options = {},
) {
  const given = raggedCase(spec, lengths, 1, 5);
  const args = argumentsOf(given);
  const all = { smScale: spec.smScale, slidingWindow: spec.slidingWindow, softCap: spec.softCap, ...options };
  const got = await taken(v2(args, all));
  const want = onReference({ ...given, kScale: options.kScale, vScale: options.vScale }).out;
  expect(largestError(got, want)).toBeLessThan(1e-5);
  const padding = got.subarray(given.batch.queryIndptr[lengths.length] * spec.numQHeads * spec.headDim);
  expect(padding.length).toBe(5 * spec.numQHeads * spec.headDim);
  expect(padding.every((x) => x === 0)).toBe(true);
  if (Object.keys(options).length === 0 && !spec.slidingWindow && !spec.softCap) {
    expect(bitsOf(await taken(v1(args, { smScale: spec.smScale })))).toEqual(bitsOf(got));
  }
}

const lists = Object.entries(sequenceLists);

describe("ragged paged attention, versions 1 and 2", () => {
  it.each(lists)("equals the reference: %s", (_name, lengths) =>
    expectEquals(defaultSpec({ headDim: 8, numQHeads: 4, numKvHeads: 1, pageSize: 16 }), lengths),
  );

  it.each([
    [12, 2, 128, 16],
    [3, 3, 240, 16],
    [5, 1, 80, 8],
    [32, 8, 16, 32],
  ])("decodes with %i query heads on %i, %i channels, pages of %i", (numQHeads, numKvHeads, headDim, pageSize) =>
    expectEquals(defaultSpec({ headDim, numQHeads, numKvHeads, pageSize }), sequenceLists["decode only"].slice(0, 8)),
  );

  it.each([1, 5, 16])("equals the reference: complex, %i sequences", (numSeqs) =>
    expectEquals(defaultSpec({ headDim: 16, numQHeads: 6, numKvHeads: 2, pageSize: 16 }), complexSequences(numSeqs)),
  );

  const grid = [5, 128].flatMap((window) => [undefined, 50, 0.5].map((cap) => [window, cap] as const));
  it.each(grid)("with a window of %i and a soft cap of %s", (slidingWindow, softCap) =>
    expectEquals(
      defaultSpec({ headDim: 8, numQHeads: 4, numKvHeads: 2, pageSize: 16, slidingWindow, softCap }),
      sequenceLists.mixed.slice(0, 6),
    ),
  );

  it.each([
    ["f8e4m3", 0.5, 0.5],
    ["f8e5m2", 0.5, 0.5],
    ["f8e4m3", undefined, undefined],
    ["bf16", 2, 3],
    ["f16", undefined, 0.25],
  ] as const)("with %s pages and scales %s, %s", (storage, kScale, vScale) =>
    expectEquals(defaultSpec({ headDim: 24, pageSize: 16, storage }), sequenceLists.basic, { kScale, vScale }),
  );

  it("scales logits by 1 unless told otherwise, and adds a mask value that is", async () => {
    const lengths = sequenceLists.mixed.slice(0, 2);
    const given = raggedCase(defaultSpec({ smScale: 1, headDim: 4 }), lengths);
    expect(largestError(await taken(v2(argumentsOf(given))), onReference(given).out)).toBeLessThan(1e-5);
    const visible = { ...given, spec: { ...given.spec, maskValue: -2 } };
    const got = await taken(v1(argumentsOf(given), { maskValue: -2 }));
    expect(largestError(got, onReference(visible).out)).toBeLessThan(1e-5);
    // A larger sum than the default hides no better.
    const hidden = await taken(v1(argumentsOf(given), { maskValue: -3e38 }));
    expect(largestError(hidden, onReference(given).out)).toBeLessThan(1e-5);
  });

  it("takes a negative cap for the same positive one", async () => {
    const given = raggedCase(defaultSpec({ smScale: 1, softCap: 2 }), [{ queryLen: 3, kvLen: 9 }]);
    expect(largestError(await taken(v2(argumentsOf(given), { softCap: -2 })), onReference(given).out)).toBeLessThan(
      1e-5,
    );
  });

  it("writes to a tensor that is given, and compiles nothing for other lengths", async () => {
    const spec = defaultSpec({ smScale: 1 });
    const given = raggedCase(spec, [{ queryLen: 3, kvLen: 9 }]);
    const args = argumentsOf(given);
    const out = test.f32(args.q.shape, given.q);
    expect(await v2(args, { out })).toEqual(out);
    expect(largestError(test.readF32(out), onReference(given).out)).toBeLessThan(1e-5);
    const { numKernels, usedBytes } = test.device.stats();
    await taken(v2(argumentsOf(raggedCase(spec, sequenceLists.basic)), { kScale: 3, vScale: 2 }));
    test.clear();
    expect(test.device.stats().numKernels).toBe(numKernels);
    expect(test.device.stats().usedBytes).toBeLessThan(usedBytes);
  });
});

describe("ragged paged attention refuses", () => {
  const lengths: readonly Lengths[] = [
    { queryLen: 2, kvLen: 5 },
    { queryLen: 1, kvLen: 9 },
  ];
  const good = (): Arguments => argumentsOf(raggedCase(defaultSpec({ smScale: 1 }), lengths, 1, 1));
  const fails = async (
    changes: Partial<Arguments> | ((args: Arguments) => Partial<Arguments>),
    message: string,
    options: RaggedPagedAttentionV2Options = {},
    call: typeof v2 = v2,
  ) => {
    const args = good();
    const changed = { ...args, ...(typeof changes === "function" ? changes(args) : changes) };
    await expect(call(changed, options)).rejects.toThrow(message);
  };

  it("shapes that do not fit together", async () => {
    await fails({ numSeqs: Int32Array.of(2, 2) }, "numSeqs.length = 2 must be 1");
    await fails(
      ({ q }) => ({ q: { ...q, shape: [4, 64] } }),
      "q.shape = [4, 64] must be [maxTokens, numQHeads, headDim]",
    );
    await fails(({ q }) => ({ q: { ...q, shape: [4, 8, 8] } }), "headDim of the pages = 16 must be that of q = 8");
    await fails(({ q }) => ({ q: { ...q, shape: [4, 5, 16] } }), "numQHeads = 5 must be divisible by numKvHeads = 2");
    await fails(
      ({ kvPages }) => ({ kvPages: { ...kvPages, shape: [9, 4, 3, 16] } }),
      "numCombinedKvHeads = 3 must be even",
    );
    await fails(
      ({ kvPages }) => ({ kvPages: { ...kvPages, shape: [9, 4, 64] } }),
      "kvPages.shape = [9, 4, 64] must be [pages, pageSize, 2 * numKvHeads, headDim]",
    );
    await fails(
      ({ kvPages }) => ({ kvPages: { ...kvPages, type: "i8" } }),
      "kvPages.type = i8 must be a floating-point type",
    );
    await fails(
      ({ vPages }) => ({ vPages: { ...vPages, shape: [7, 4, 2, 8] } }),
      "vPages.shape = [7, 4, 2, 8] must be kPages.shape = [",
      {},
      v1,
    );
    await fails({ kvLens: Int32Array.of(5, 9) }, "kvLens.length = 2 must be 3");
    await fails({ cuQLens: Int32Array.of(0, 2, 3) }, "cuQLens.length = 3 must be 4");
    await fails(
      { pageIndices: { values: new Int32Array(5), shape: [3, 2] } },
      "pageIndices.shape = [3, 2] must be [sequences, pagesPerSeq] of its 5 values",
    );
  });

  it("integers of another type", async () => {
    const other = (values: number[]) => new Int16Array(values) as unknown as Int32Array; // as plain JavaScript could
    await fails({ kvLens: other([5, 9, 0]) }, "kvLens must be an Int32Array, got Int16Array");
    await fails({ cuQLens: other([0, 2, 3, 0]) }, "cuQLens must be an Int32Array, got Int16Array");
    await fails({ numSeqs: other([2]) }, "numSeqs must be an Int32Array, got Int16Array");
    await fails(
      { pageIndices: { values: other([0]), shape: [1, 1] } },
      "pageIndices.values must be an Int32Array, got Int16Array",
    );
  });

  it("options that mean nothing", async () => {
    for (const slidingWindow of [0, -1])
      await fails({}, `slidingWindow = ${slidingWindow} must be positive`, { slidingWindow });
    await fails({}, "softCap = 0 must not be 0", { softCap: 0 });
    for (const numKvPagesPerBlock of [0, 6]) {
      await fails({}, `numKvPagesPerBlock = ${numKvPagesPerBlock} must be in range (0, 5]`, { numKvPagesPerBlock });
    }
    await fails({}, "numQueriesPerBlock = 0 must be positive", { numQueriesPerBlock: 0 });
    await fails({}, "vmemLimitBytes = -1 must be positive", { vmemLimitBytes: -1 });
    const tuned = await v2(good(), { numKvPagesPerBlock: 5, numQueriesPerBlock: 1, vmemLimitBytes: 1 });
    if (tuned.buffer) test.device.free(tuned.buffer);
  });

  it("lengths and pages that do not fit together, of the sequences that there are", async () => {
    await fails({ numSeqs: Int32Array.of(4) }, "numSeqs[0] = 4 must be from 0 to maxSeqs = 3");
    await fails(
      { kvLens: Int32Array.of(5, 21, 0) },
      "pagesPerSeq = 5 must be at least 6 for kvLens[1] = 21 and pageSize = 4",
    );
    await fails({ cuQLens: Int32Array.of(0, 2, 5, 0) }, "cuQLens[numSeqs] = 5 must be at most maxTokens = 4");
    await fails({ kvLens: Int32Array.of(1, 9, 0) }, "qLen = 2 must be at most kvLens[0] = 1 at sequence 0");
    await fails({ cuQLens: Int32Array.of(0, 2, 1, 0) }, "queryIndptr must not fall, got 2 then 1 for sequence 1");
    const values = new Int32Array(15).fill(77);
    await fails({ pageIndices: { values, shape: [3, 5] } }, "blockTables[0][0] = 77 is not a page: the pool has 8");
  });
});
