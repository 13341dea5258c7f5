import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { contiguous, everyForm, type Pages, stored } from "../../test/fixtures/attention/pageForms.ts";
import {
  defaultSpec,
  type Lengths,
  largestError,
  numbers,
  onReference,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { bitsOf, type TestDevice, testDevices } from "../../test/ops/testDevice.ts";
import { type AttentionSpec, attentionReference, decodeRows, nhdStrides } from "../ops/attention/index.ts";
import { RopeTable } from "../ops/rope/index.ts";
import { BatchAttention, type BatchAttentionArgs } from "./batchAttention.ts";
import { packMask, packVisible, treeMask } from "./masks.ts";
import { type AttentionResult, freeResult } from "./results.ts";

const mixed: readonly Lengths[] = [
  { queryLen: 1, kvLen: 41 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 19, kvLen: 19 },
  { queryLen: 5, kvLen: 70 },
  { queryLen: 0, kvLen: 9 },
  { queryLen: 1, kvLen: 1 },
];

function pagesOf({ spec, batch, kPages, vPages }: RaggedCase): Pages {
  const { pageSize = 1, numKvHeads, headDim } = spec;
  return { numPages: batch.numPages, pageSize, numKvHeads, headDim, k: kPages, v: vPages };
}

describe.each(Object.entries(testDevices))("BatchAttention on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => {
    test.clear();
  });
  afterAll(() => test.close());

  const qOf = ({ spec, batch, q }: RaggedCase) => test.f32([batch.numRows, spec.numQHeads, spec.headDim], q);

  /** A copy of what the call allocated, which is freed. */
  function taken(result: AttentionResult) {
    const read = (tensor: AttentionResult["lse"]) =>
      tensor?.buffer
        ? test.device
            .f32At(
              tensor.pointer,
              tensor.shape.reduce((a, b) => a * b, 1),
            )
            .slice()
        : new Float32Array();
    const copies = { out: read(result.out), lse: read(result.lse) };
    freeResult(test.device, result);
    return copies;
  }

  async function runOnce(given: RaggedCase, args: BatchAttentionArgs, changes: object = {}, batch = given.batch) {
    const attention = new BatchAttention(test.device, { ...given.spec, ...changes });
    attention.plan(batch);
    const result = taken(await attention.run(args));
    attention.release();
    return result;
  }

  it("gives the same bits for every layout of the same pages", async () => {
    const given = raggedCase(defaultSpec({ headDim: 20, numQHeads: 6 }), mixed, 1, 3);
    const want = onReference(given);
    const forms = Object.entries(everyForm(test, pagesOf(given)));
    expect(forms).toHaveLength(7);
    let first: Uint32Array | undefined;
    for (const [name, { layout, cache }] of forms) {
      const got = await runOnce(given, { q: qOf(given), cache }, { layout });
      expect(largestError(got.out, want.out), name).toBeLessThan(3e-6);
      expect(largestError(got.lse, want.lse), name).toBeLessThan(3e-6);
      first ??= bitsOf(got.out);
      expect(bitsOf(got.out), name).toEqual(first);
    }
  });

  it.each(["NHD", "HND"] as const)("reads contiguous rows in %s", async (layout) => {
    const given = raggedCase(defaultSpec(), mixed, 2, 3);
    const { numKvHeads: H, headDim: D } = given.spec;
    const { batch, k, v, numRows } = contiguous(given.batch, pagesOf(given));
    const rows = (x: Float32Array) =>
      layout === "NHD"
        ? test.f32([numRows, H, D], x)
        : test.f32(
            [H, numRows, D],
            Float32Array.from(
              x,
              (_, i) => x[(((i / D) % numRows) | 0) * H * D + Math.floor(i / (D * numRows)) * D + (i % D)],
            ),
          );
    const got = await runOnce(
      given,
      { q: qOf(given), cache: { k: rows(k), v: rows(v) } },
      { layout, pageSize: undefined },
      batch,
    );
    const want = onReference(given);
    expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
  });

  it.each([
    "f16",
    "bf16",
    "f8e4m3",
    "f8e5m2",
    "i8",
    { kind: "grouped", bits: 4, groupSize: 8 },
    { kind: "grouped", bits: 3, groupSize: 0 },
    { kind: "tiled", tile: 8 },
  ] as const)("reads pages of %o, scales where it has some", async (storage) => {
    const plain = raggedCase(defaultSpec({ headDim: 24 }), mixed, 3, 2);
    const finite = (x: Float32Array) => x.map((value) => (Number.isNaN(value) ? 0.5 : value));
    const { pageSize = 1, numKvHeads, headDim } = plain.spec;
    const shape = [plain.batch.numPages, pageSize, numKvHeads, headDim];
    const [k, v] = [plain.kPages, plain.vPages].map((pages) => stored(test, storage, shape, finite(pages)));
    const [kPages, vPages] = [k, v].map(({ units, scales }) => decodeRows(storage, { units, scales }, headDim));
    const scales = k.scaleTensor && v.scaleTensor && { k: k.scaleTensor, v: v.scaleTensor };
    const spec = { ...plain.spec, storage };
    const args = { q: qOf(plain), cache: { k: k.tensor, v: v.tensor }, scales, kScale: 0.7, vScale: 1.3 };
    const got = await runOnce({ ...plain, spec }, args);
    const strides = nhdStrides(spec);
    const want = attentionReference(plain.spec, plain.batch, {
      q: plain.q,
      kPages,
      vPages,
      kStrides: strides,
      vStrides: strides,
      kScale: 0.7,
      vScale: 1.3,
    });
    expect(largestError(got.out, Float32Array.from(want.out))).toBeLessThan(5e-6);
    expect(largestError(got.lse, Float32Array.from(want.lse))).toBeLessThan(5e-6);
  });

  const options: Readonly<Record<string, Partial<AttentionSpec>>> = {
    smScale: { smScale: 0.5 },
    softCap: { softCap: 2 },
    window: { slidingWindow: 5 },
    causal: { causal: false },
    maskValue: { maskValue: -3 },
    alibi: { alibi: true },
    sinks: { sinks: true },
    base: { lseBase: "2" },
    rope: { rope: { style: "halves", dim: 12, offset: 4, queries: true } },
    mask: { causal: false, customMask: true },
  };
  const contradictions = [
    ["causal", "window"],
    ["causal", "maskValue"],
    ["window", "mask"],
    ["maskValue", "mask"],
    ["causal", "mask"],
  ];
  const names = Object.keys(options);
  const pairs = names
    .flatMap((a, i) => names.slice(i).map((b) => [a, b] as const))
    .filter(([a, b]) => !contradictions.some(([c, d]) => (a === c && b === d) || (a === d && b === c)));

  it.each(pairs)("equals the reference with %s and %s", async (a, b) => {
    const spec = defaultSpec({ ...options[a], ...options[b], splitSize: 32, numQHeads: 6 });
    const given = raggedCase(spec, mixed, 4, 3);
    const slopes = Float32Array.of(0.5, 0.25, 0.125, -0.1, 0, 1);
    const sinks = Float32Array.of(0, 1, -2, 3, 0.5, -0.5);
    const table = new RopeTable({
      headDim: 12,
      rotaryDim: 12,
      style: "halves",
      theta: 100,
      scaling: { type: "default" },
    }).rows(71);
    const qLens = mixed.map(({ queryLen }) => queryLen);
    // Every third pair, and no key at all for the fifth query.
    const mask = packVisible(
      { qLens, kvLens: mixed.map(({ kvLen }) => kvLen) },
      (s, i, t) => i !== 4 && (s + i + t) % 3 !== 0,
    );
    const batch = spec.customMask ? { ...given.batch, customMask: mask } : given.batch;
    const strides = nhdStrides(spec);
    const shape = [batch.numPages, spec.pageSize ?? 1, spec.numKvHeads, spec.headDim];
    const args: BatchAttentionArgs = {
      q: qOf(given),
      cache: { k: test.f32(shape, given.kPages), v: test.f32(shape, given.vPages) },
      alibiSlopes: spec.alibi ? test.f32([6], slopes) : undefined,
      sinks: spec.sinks ? test.f32([6], sinks) : undefined,
      ropeTable: spec.rope ? test.f32([71, 12], table) : undefined,
    };
    const got = await runOnce(given, args, {}, batch);
    const want = attentionReference(spec, batch, {
      ...given,
      kStrides: strides,
      vStrides: strides,
      alibiSlopes: spec.alibi ? slopes : undefined,
      sinks: spec.sinks ? sinks : undefined,
      ropeTable: spec.rope ? table : undefined,
    });
    expect(largestError(got.out, Float32Array.from(want.out))).toBeLessThan(5e-6);
    expect(largestError(got.lse, Float32Array.from(want.lse))).toBeLessThan(5e-6);
  });

  it("reads and writes rows inside wider ones, and leaves what is between them", async () => {
    const given = raggedCase(defaultSpec(), mixed, 5);
    const { numQHeads, headDim } = given.spec;
    const { numRows } = given.batch;
    const [length, rowStride] = [numQHeads * headDim, numQHeads * headDim + 7];
    const spread = (x: ArrayLike<number>, gap: number) =>
      Float32Array.from({ length: numRows * rowStride }, (_, i) =>
        i % rowStride < length ? x[Math.floor(i / rowStride) * length + (i % rowStride)] : gap,
      );
    const shape = [numRows, numQHeads, headDim];
    const q = { ...test.f32(shape, spread(given.q, Number.NaN)), rowStride };
    const out = { ...test.f32(shape, new Float32Array(numRows * rowStride).fill(9)), rowStride };
    const lse = test.f32([numRows, numQHeads], new Float32Array(numRows * numQHeads));
    const { cache } = everyForm(test, pagesOf(given))["a pair in NHD"];
    const attention = new BatchAttention(test.device, given.spec);
    attention.plan(given.batch);
    const result = await attention.run({ q, cache, out, lse });
    expect(result).toEqual({ out, lse });
    const want = onReference(given);
    expect(largestError(test.readF32(out), spread(want.out, 9))).toBeLessThan(3e-6);
    expect(largestError(test.readF32(lse), want.lse)).toBeLessThan(3e-6);
    attention.release();
  });

  it("plans once for many layers, and compiles and allocates nothing when lengths change within what it has room for", async () => {
    const spec = defaultSpec({ splitSize: 32 });
    const maxRows = 25;
    const attention = new BatchAttention(test.device, spec);
    // The first step has more of everything than the others: rows, pages, and chunks of one token to merge.
    const steps: readonly (readonly Lengths[])[] = [
      [...mixed.slice(0, 4).map(({ kvLen }) => ({ queryLen: Math.min(6, kvLen), kvLen })), { queryLen: 1, kvLen: 100 }],
      [{ queryLen: 1, kvLen: 70 }],
      [],
      [
        { queryLen: 12, kvLen: 12 },
        { queryLen: 1, kvLen: 33 },
        { queryLen: 1, kvLen: 2 },
      ],
    ];
    let kernels = 0;
    let buffers = 0;
    for (const [step, lengths] of steps.entries()) {
      const tight = raggedCase(spec, lengths, step);
      const rowLength = spec.numQHeads * spec.headDim;
      const q = new Float32Array(maxRows * rowLength).fill(Number.NaN);
      q.set(tight.q);
      const given = { ...tight, q, batch: { ...tight.batch, numRows: maxRows } };
      attention.plan(given.batch);
      for (const layer of [0, 1]) {
        const other = raggedCase(spec, lengths, step + 100 * layer).vPages;
        // The second layer has other values on the same pages and lengths.
        const vPages = other.map((value, i) =>
          Number.isNaN(given.vPages[i]) ? Number.NaN : Number.isNaN(value) ? 1 : value,
        );
        const layerCase = { ...given, vPages };
        const { cache } = everyForm(test, pagesOf(layerCase))["a pair in NHD"];
        const got = taken(await attention.run({ q: qOf(layerCase), cache }));
        const want = onReference(layerCase);
        expect(largestError(got.out, want.out)).toBeLessThan(3e-6);
        expect(largestError(got.lse, want.lse)).toBeLessThan(3e-6);
        expect(got.out.subarray(given.batch.queryIndptr[lengths.length] * rowLength).every((x) => x === 0)).toBe(true);
        test.clear();
        const stats = test.device.stats();
        if (step === 0) [kernels, buffers] = [stats.numKernels, stats.numBuffers];
        expect([stats.numKernels, stats.numBuffers]).toEqual([kernels, buffers]);
      }
    }
    attention.release();
  });

  it("lets a recording run again while its key stays the same", async () => {
    const spec = defaultSpec();
    // Room for the longest step, so that tensors keep their places.
    const room = raggedCase(spec, [
      { queryLen: 1, kvLen: 8 },
      { queryLen: 1, kvLen: 28 },
    ]);
    const { cache } = everyForm(test, pagesOf(room))["a pair in NHD"];
    const out = test.f32([2, spec.numQHeads, spec.headDim], room.q);
    const lse = test.f32([2, spec.numQHeads], new Float32Array(2 * spec.numQHeads));
    const attention = new BatchAttention(test.device, spec);
    const commands = test.device.commands();
    attention.plan(room.batch);
    attention.record({ device: test.device, commands }, { q: qOf(room), cache, out, lse });
    const key = attention.recordingKey;
    for (const kvLens of [
      [8, 28],
      [5, 25],
      [6, 26],
    ]) {
      const given = { ...room, batch: { ...room.batch, kvLens: Int32Array.from(kvLens) } };
      attention.plan(given.batch);
      expect(attention.recordingKey).toBe(key);
      await test.device.run(commands);
      const want = onReference(given);
      expect(largestError(test.readF32(out), want.out)).toBeLessThan(3e-6);
      expect(largestError(test.readF32(lse), want.lse)).toBeLessThan(3e-6);
    }
    commands.free();
    attention.release();
  });

  it("leaves page ids unread when told to, and reads none that belongs to no sequence", async () => {
    const given = raggedCase(defaultSpec(), mixed, 6, 3);
    const { cache } = everyForm(test, pagesOf(given))["a pair in NHD"];
    const attention = new BatchAttention(test.device, given.spec);
    attention.plan(given.batch, { checkPages: false });
    const got = taken(await attention.run({ q: qOf(given), cache }));
    expect(largestError(got.out, onReference(given).out)).toBeLessThan(3e-6);
    const blockTables = given.batch.blockTables.slice();
    blockTables[0] = given.batch.numPages;
    const wrong = { ...given.batch, blockTables };
    expect(() => attention.plan(wrong)).toThrow(
      `blockTables[0][0] = ${given.batch.numPages} is not a page: the pool has ${given.batch.numPages}`,
    );
    attention.plan(wrong, { checkPages: false });
    attention.release();
  });

  it("names the tensor that does not fit, and keeps no memory for a call that failed", async () => {
    const given = raggedCase(defaultSpec(), [{ queryLen: 2, kvLen: 6 }]);
    const { numPages } = given.batch;
    const good = test.f32([numPages, 4, 2, 16], new Float32Array(numPages * 4 * 2 * 16));
    const pages = (shape: readonly number[]) => ({ ...good, shape });
    const args: BatchAttentionArgs = { q: qOf(given), cache: { k: good, v: good } };
    const attention = new BatchAttention(test.device, given.spec);
    await expect(attention.run(args)).rejects.toThrow("plan must be called before the attention is recorded");
    attention.plan(given.batch);
    freeResult(test.device, await attention.run(args)); // the first run gives the device its scratch
    const { usedBytes } = test.device.stats();
    const fails = (changes: Partial<BatchAttentionArgs>, message: string) =>
      expect(attention.run({ ...args, ...changes })).rejects.toThrow(message);

    await fails({ q: { ...args.q, type: "f16" } }, "q must be of type f32, got f16");
    await fails({ q: { ...args.q, pointer: 6 } }, "q.pointer must be a multiple of 4, got 6");
    await fails({ q: { ...args.q, shape: [1, 4, 16] } }, "q must have shape [at least 2, 4, 16], got [1, 4, 16]");
    await fails({ q: { ...args.q, shape: [2, 64] } }, "q must have shape [at least 2, 4, 16], got [2, 64]");
    await fails({ q: { ...args.q, rowStride: 63 } }, "q.rowStride must be an integer of at least 64, got 63");
    await fails({ out: { ...args.q, shape: [2, 4, 8] } }, "out must have shape [at least 2, 4, 16], got [2, 4, 8]");
    await fails({ lse: { ...args.q, shape: [2, 3] } }, "lse must have shape [at least 2, 4], got [2, 3]");
    await fails({ lse: { ...args.q, shape: [1, 4] } }, "lse must have shape [at least 2, 4], got [1, 4]");
    await fails({ cache: { k: { ...good, type: "f16" }, v: good } }, "cache.k must be of type f32, got f16");
    await fails(
      { cache: { k: good, v: pages([numPages, 2, 4, 16]) } },
      `cache.v must have shape [at least ${numPages}, 4, 2, 16], got [${numPages}, 2, 4, 16]`,
    );
    await fails(
      { cache: { k: pages([numPages - 1, 4, 2, 16]), v: good } },
      `cache.k must have shape [at least ${numPages}, 4, 2, 16]`,
    );
    await fails({ cache: { kv: good } }, `cache.kv must have shape [at least ${numPages}, 2, 4, 2, 16]`);
    await fails({ cache: { combined: good } }, `cache.combined must have shape [at least ${numPages}, 4, 4, 16]`);
    await fails(
      { cache: { k: { ...good, strides: [1, 2, 3] }, v: good } },
      "cache.k.strides must be 4 whole numbers, the last one 1, got [1, 2, 3]",
    );
    await fails({ scales: { k: good, v: good } }, 'scales must be absent: storage "f32" has none');
    await fails({ alibiSlopes: good }, "alibiSlopes must be absent: the spec lacks alibi");
    await fails({ sinks: good }, "sinks must be absent: the spec lacks sinks");
    await fails({ ropeTable: good }, "ropeTable must be absent: the spec lacks rope");
    expect(test.device.stats().usedBytes).toBe(usedBytes);

    const rotating = new BatchAttention(test.device, { ...given.spec, rope: { style: "halves", dim: 8 }, sinks: true });
    rotating.plan(given.batch);
    const sinks = test.f32([4], [0, 0, 0, 0]);
    const rotates = (changes: Partial<BatchAttentionArgs>, message: string) =>
      expect(rotating.run({ ...args, ...changes })).rejects.toThrow(message);
    await rotates({}, "sinks must be given because the spec has sinks");
    await rotates({ sinks: { ...sinks, shape: [2] } }, "sinks must have shape [4], got [2]");
    await rotates({ sinks }, "ropeTable must be given because the spec has rope");
    await rotates(
      { sinks, ropeTable: { ...good, shape: [5, 8] } },
      "ropeTable must have shape [at least 6, 8], got [5, 8]",
    );
    for (const used of [attention, rotating]) used.release();

    expect(() => new BatchAttention(test.device, { ...given.spec, layout: "DNH" as "NHD" })).toThrow(
      "layout must be NHD or HND, got DNH",
    );
    const latent = { ...given.spec, mla: { ropeDim: 4 } };
    expect(() => new BatchAttention(test.device, latent)).toThrow("mla is not for BatchAttention");
    const int8 = new BatchAttention(test.device, { ...given.spec, storage: "i8" });
    int8.plan(given.batch);
    const codes = { ...good, type: "i8" as const };
    await expect(int8.run({ ...args, cache: { k: codes, v: codes } })).rejects.toThrow(
      'scales must be given: storage "i8" has scales of rows',
    );
    int8.release();
  });

  it("verifies a drafted tree as if each branch ran alone", async () => {
    const { pageSize: _, ...spec } = defaultSpec({ numQHeads: 4, headDim: 24 });
    const rowLength = spec.numKvHeads * spec.headDim;
    const context = 37;
    const parents = [-1, 0, 0, 1, 1, 2, -1, 6, 3];
    const kvLen = context + parents.length;
    const [k, v] = [1, 2].map((seed) => numbers(seed, kvLen * rowLength));
    const q = numbers(3, parents.length * spec.numQHeads * spec.headDim);
    const tokens = (rows: readonly number[], x: Float32Array, length: number) =>
      Float32Array.from(
        { length: rows.length * length },
        (_, i) => x[rows[Math.floor(i / length)] * length + (i % length)],
      );
    const run = async (changes: object, rows: readonly number[], drafts: readonly number[], mask?: Uint8Array) => {
      const attention = new BatchAttention(test.device, { ...spec, ...changes });
      attention.plan({
        numRows: drafts.length,
        numSeqs: 1,
        queryIndptr: Int32Array.of(0, drafts.length),
        kvLens: Int32Array.of(rows.length),
        blockTables: Int32Array.of(0),
        maxPages: 1,
        numPages: rows.length,
        customMask: mask && packMask(mask, { qLens: [drafts.length], kvLens: [rows.length] }),
      });
      const cache = (x: Float32Array) =>
        test.f32([rows.length, spec.numKvHeads, spec.headDim], tokens(rows, x, rowLength));
      const queries = tokens(drafts, q, spec.numQHeads * spec.headDim);
      const result = await attention.run({
        q: test.f32([drafts.length, spec.numQHeads, spec.headDim], queries),
        cache: { k: cache(k), v: cache(v) },
      });
      attention.release();
      return taken(result);
    };

    const everything = Array.from({ length: kvLen }, (_, t) => t);
    const drafts = parents.map((_, i) => i);
    const tree = await run({ causal: false, customMask: true }, everything, drafts, treeMask(parents, kvLen));
    const leaves = drafts.filter((i) => !parents.includes(i));
    expect(leaves).toEqual([4, 5, 7, 8]);
    for (const leaf of leaves) {
      const branch = [leaf];
      while (parents[branch[0]] !== -1) branch.unshift(parents[branch[0]]);
      const alone = await run(
        { causal: true },
        [...everything.slice(0, context), ...branch.map((i) => context + i)],
        branch,
      );
      expect(largestError(alone.out, tokens(branch, tree.out, spec.numQHeads * spec.headDim))).toBeLessThan(3e-6);
      expect(largestError(alone.lse, tokens(branch, tree.lse, spec.numQHeads))).toBeLessThan(3e-6);
    }
  });
});
