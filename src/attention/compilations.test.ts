/**
 * Only the spec compiles kernels: whatever changes from step to step (rows, sequences, lengths, chunks, pages, their pool, ranks of a layer,
 * masks, the form of latent attention) runs what is there. For every class of attention over pages.
 */
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { attendMla, makeMlaCase } from "../../test/fixtures/attention/mlaCase.ts";
import { paluCase, paluOnDevice, paluSpec } from "../../test/fixtures/attention/palu.ts";
import { defaultSpec, type Lengths, raggedCase } from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { BatchAttention, type BatchAttentionSpec } from "./batchAttention.ts";
import { BlockSparseAttention } from "./blockSparse.ts";
import { MultiLevelCascadeAttention } from "./cascade.ts";
import { packVisible } from "./masks.ts";
import { BatchPaluAttention } from "./palu/index.ts";
import { freeResult } from "./results.ts";

/** Decoding and prefill, one sequence and many, in one chunk and in many, and none at all. */
const steps: readonly (readonly Lengths[])[] = [
  [{ queryLen: 1, kvLen: 9 }],
  [
    { queryLen: 40, kvLen: 40 },
    { queryLen: 0, kvLen: 0 },
    { queryLen: 1, kvLen: 300 },
  ],
  [],
  Array.from({ length: 20 }, (_, s) => ({ queryLen: 1 + (s % 3), kvLen: 3 + 7 * s })),
  [{ queryLen: 3, kvLen: 700 }],
  Array.from({ length: 20 }, (_, s) => ({ queryLen: 1, kvLen: 1 + 3 * s })),
];

describe("no step compiles a kernel", () => {
  let test: TestDevice;
  beforeEach(async () => {
    test = await TestDevice.create({ threads: 2 });
  });
  afterEach(() => test.close());

  /** `make` compiles; from then on nothing does, and the first run had kernels to run. */
  async function expectNoCompilation<Step>(steps: readonly Step[], run: (step: Step) => Promise<void>): Promise<void> {
    const compiled = test.device.stats().numKernels;
    expect(compiled).toBeGreaterThan(0);
    for (const step of steps) {
      await run(step);
      expect(test.device.stats().numKernels).toBe(compiled);
      test.clear();
    }
  }

  it.each<[string, Partial<BatchAttentionSpec>]>([
    ["keys and values of heads", {}],
    ["a window, a cap and sinks", { slidingWindow: 7, softCap: 3, sinks: true }],
    ["a mask", { causal: false, customMask: true }],
  ])("of %s", async (_what, changes) => {
    const spec = defaultSpec({ splitSize: 32, ...changes });
    const attention = new BatchAttention(test.device, spec);
    await expectNoCompilation(steps, async (lengths) => {
      const { batch, q, kPages, vPages } = raggedCase(spec, lengths, 1, lengths.length);
      const sees = packVisible(
        { qLens: lengths.map(({ queryLen }) => queryLen), kvLens: lengths.map(({ kvLen }) => kvLen) },
        (s, i, t) => (s + i + t) % 2 === 0,
      );
      const shape = [batch.numPages, 4, 2, 16];
      attention.plan(spec.customMask ? { ...batch, customMask: sees } : batch);
      const result = await attention.run({
        q: test.f32([batch.numRows, 4, 16], q),
        cache: { k: test.f32(shape, kPages), v: test.f32(shape, vPages) },
        sinks: spec.sinks ? test.f32([4], [0, 1, 2, 3]) : undefined,
      });
      freeResult(test.device, result);
    });
    attention.release();
  });

  it("of latents, absorbed or rebuilt, whatever is cut into chunks", async () => {
    const dims = { kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24, numHeads: 3, pageSize: 4 };
    const changes = { absorbThreshold: 3, rebuiltTokens: 32 };
    const forms = new Set<string>();
    const step = async (lengths: readonly Lengths[]): Promise<void> => {
      const pairs = lengths.map(({ queryLen, kvLen }) => [queryLen, kvLen] as const);
      const made = makeMlaCase({ ...dims, smScale: 0.2, lengths: pairs, paddingRows: 2 });
      const { segments } = await attendMla(test, made, changes);
      for (const { form } of segments) forms.add(form);
    };
    // Both forms once: what a step of that form needs besides attention is compiled when the first one is recorded.
    await step([
      { queryLen: 1, kvLen: 5 },
      { queryLen: 5, kvLen: 50 },
    ]);
    expect(forms.size).toBe(2);
    await expectNoCompilation([...steps, [...steps[1], ...steps[4], ...steps[3]]], step);
  });

  it("of Palu's latents, whatever the ranks of the layer", async () => {
    const spec = paluSpec({ numKvHeads: 4, splitSize: 32, maxRankK: 9, maxRankV: 9 });
    new BatchPaluAttention(test.device, spec).release();
    const ranks = [
      { ranksK: [6, 3, 5, 9], ranksV: [2, 9, 4, 3] },
      { ranksK: [9], ranksV: [5] },
      { ranksK: [1, 8], ranksV: [9, 9] },
    ];
    await expectNoCompilation([...steps.entries()], async ([i, lengths]) => {
      await paluOnDevice(test.device, paluCase(spec, ranks[i % 3], lengths));
    });
  });

  it("of shared prefixes, whoever shares them", async () => {
    const spec = defaultSpec({ splitSize: 32 });
    const cascade = new MultiLevelCascadeAttention(test.device, 2, spec);
    const run = async ([numSeqs, shared]: readonly [number, number]): Promise<void> => {
      const own = Array.from({ length: numSeqs }, (_, s) => ({ queryLen: 1 + s, kvLen: 5 + 9 * s }));
      const { batch, q, kPages, vPages } = raggedCase(spec, own);
      const pages = Math.ceil(shared / 4);
      const prefix = {
        ...batch,
        numSeqs: 1,
        queryIndptr: Int32Array.of(0, batch.numRows),
        kvLens: Int32Array.of(shared),
        blockTables: Int32Array.from({ length: pages }, (_, j) => j % batch.numPages),
        maxPages: pages,
        allowUnseeing: true,
      };
      const cache = {
        k: test.f32([batch.numPages, 4, 2, 16], kPages),
        v: test.f32([batch.numPages, 4, 2, 16], vPages),
      };
      cascade.plan([prefix, batch]);
      freeResult(test.device, await cascade.run({ q: test.f32([batch.numRows, 4, 16], q), cache }));
    };
    await run([2, 8]);
    await expectNoCompilation(
      [
        [1, 8],
        [5, 200],
        [3, 1],
      ],
      run,
    );
    cascade.release();
  });

  it("of blocks, whatever their matrix", async () => {
    const { numQHeads, numKvHeads, headDim, smScale } = defaultSpec();
    const attention = new BlockSparseAttention(test.device, {
      numQHeads,
      numKvHeads,
      headDim,
      storage: "f32",
      smScale,
      blockCols: 4,
    });
    await expectNoCompilation([1, 5, 30], async (blocks) => {
      const indptr = Int32Array.from({ length: blocks + 1 }, (_, i) => i);
      const indices = Int32Array.from({ length: blocks }, (_, i) => (i * 7) % blocks);
      attention.plan({ numRows: blocks * 2, numCols: blocks * 4, blockRows: 2, indptr, indices });
      const rows = (count: number, heads: number) =>
        test.f32([count, heads, 16], new Float32Array(count * heads * 16).fill(1));
      const result = await attention.run({ q: rows(blocks * 2, 4), k: rows(blocks * 4, 2), v: rows(blocks * 4, 2) });
      freeResult(test.device, result);
    });
    attention.release();
  });
});
