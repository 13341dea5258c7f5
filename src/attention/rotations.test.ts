/**
 * Rotating keys and queries inside of attention is rotating them before it: by the rope operation, at the position ids of the tokens, from the same
 * table. For every scaling of the frequencies, both styles, rotated parts of a head, ALiBi on top, and latent attention's rope keys.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { attendMla, makeMlaCase } from "../../test/fixtures/attention/mlaCase.ts";
import {
  defaultSpec,
  type Lengths,
  largestError,
  type RaggedCase,
  raggedCase,
} from "../../test/fixtures/attention/ragged.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { type RopeScaling, type RopeSpec, RopeTable, recordRope } from "../ops/rope/index.ts";
import { BatchAttention } from "./batchAttention.ts";
import { freeResult } from "./results.ts";

const lengths: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 6, kvLen: 33 },
  { queryLen: 9, kvLen: 9 },
];
/** Positions of the first keys. */
const offsets = [5, 0, 400, 77];

const scalings = (half: number): readonly RopeScaling[] => {
  const divisors = (most: number) => Array.from({ length: half }, (_, i) => 1 + (most * i) / half);
  const original = { originalMaxPositionEmbeddings: 64 };
  return [
    { type: "default" },
    { type: "linear", factor: 4 },
    { type: "dynamic", factor: 2, maxPositionEmbeddings: 128 },
    { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, ...original },
    { type: "yarn", factor: 8, mscale: 0.7, mscaleAllDim: 1.1, ...original },
    {
      ...{ type: "longrope", maxPositionEmbeddings: 1024, ...original },
      ...{ shortFactors: divisors(0), longFactors: divisors(6) },
    },
  ];
};

describe("attention that rotates", () => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await TestDevice.create({ threads: 2 });
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  /** Rows of heads after the rope operation at these positions. */
  async function rotated(
    spec: RopeSpec,
    x: Float32Array,
    positions: Int32Array,
    table: Float32Array,
  ): Promise<Float32Array> {
    if (x.length === 0) return x;
    const numHeads = x.length / positions.length / spec.headDim;
    const tensor = test.f32([positions.length, numHeads, spec.headDim], x);
    const pointers = {
      ...{ x: tensor.pointer, positions: test.i32([positions.length], positions).pointer },
      table: test.f32([table.length], table).pointer,
    };
    await test.run((recorder) => recordRope(recorder, spec, { ...pointers, numRows: positions.length, numHeads }));
    return test.readF32(tensor);
  }

  /** Position ids of the query rows, and of the slots of the pages. */
  function positionIds({ batch, spec: { pageSize = 1 } }: Pick<RaggedCase, "batch" | "spec">) {
    const queries = new Int32Array(batch.numRows);
    const slots = new Int32Array(batch.numPages * pageSize);
    for (let s = 0; s < batch.numSeqs; s++) {
      const [begin, end] = [batch.queryIndptr[s], batch.queryIndptr[s + 1]];
      for (let row = begin; row < end; row++) queries[row] = offsets[s] + batch.kvLens[s] - end + row;
      for (let t = 0; t < batch.kvLens[s]; t++) {
        const page = batch.blockTables[s * batch.maxPages + Math.floor(t / pageSize)];
        slots[page * pageSize + (t % pageSize)] = offsets[s] + t;
      }
    }
    return { queries, slots };
  }

  async function attend(given: RaggedCase, table?: Float32Array) {
    const { spec, batch } = given;
    const shape = [batch.numPages, spec.pageSize ?? 1, spec.numKvHeads, spec.headDim];
    const attention = new BatchAttention(test.device, spec);
    attention.plan({ ...batch, positionOffsets: Int32Array.from(offsets) });
    const result = await attention.run({
      q: test.f32([batch.numRows, spec.numQHeads, spec.headDim], given.q),
      cache: { k: test.f32(shape, given.kPages), v: test.f32(shape, given.vPages) },
      alibiSlopes: given.alibiSlopes && test.f32([spec.numQHeads], given.alibiSlopes),
      ropeTable: table && test.f32([table.length / (spec.rope?.dim ?? 1), spec.rope?.dim ?? 1], table),
    });
    const out = test.device.f32At(result.out.pointer, given.q.length).slice();
    const lse = test.device.f32At(result.lse?.pointer ?? 0, batch.numRows * spec.numQHeads).slice();
    freeResult(test.device, result);
    attention.release();
    return { out, lse };
  }

  const modes = (["halves", "interleaved"] as const).flatMap((style) =>
    scalings(8).map((scaling) => [scaling.type, style, scaling] as const),
  );
  it.each(modes)("is attention over what was rotated before: %s in %s", async (_type, style, scaling) => {
    for (const alibi of [false, true]) {
      const plain = defaultSpec({ headDim: 24, numQHeads: 6, alibi, splitSize: 32 });
      const alibiSlopes = alibi ? Float32Array.of(0.5, 0.25, 0.1, -0.1, 0, 1) : undefined;
      const given = { ...raggedCase(plain, lengths, 3), alibiSlopes };
      // The first 16 of 24 channels rotate.
      const rope: RopeSpec = { headDim: 24, rotaryDim: 16, style, theta: 1000, scaling };
      const table = new RopeTable(rope, 500).rows(500);
      const { queries, slots } = positionIds(given);
      const before = {
        ...given,
        q: await rotated(rope, given.q, queries, table),
        kPages: await rotated(rope, given.kPages, slots, table),
      };
      const want = await attend(before);
      const both = { ...plain, rope: { style, dim: 16, queries: true } };
      const got = await attend({ ...given, spec: both }, table);
      expect(largestError(got.out, want.out)).toBeLessThan(5e-6);
      expect(largestError(got.lse, want.lse)).toBeLessThan(5e-6);
      // Queries that come rotated meet keys that do not.
      const keysOnly = { ...given, q: before.q, spec: { ...plain, rope: { style, dim: 16 } } };
      expect(largestError((await attend(keysOnly, table)).out, want.out)).toBeLessThan(5e-6);
      // The rotation shows: the same call without it is another result.
      expect(largestError((await attend(given)).out, want.out)).toBeGreaterThan(0.01);
    }
  });

  describe.each(["absorbed", "rebuilt"] as const)("over latents, %s", (form) => {
    it.each(["interleaved", "halves"] as const)("agrees with a cache of rotated keys, in %s", async (style) => {
      const made = makeMlaCase({
        ...{ kvLoraRank: 32, qkRopeHeadDim: 16, qkNopeHeadDim: 16, vHeadDim: 24, numHeads: 3, pageSize: 4 },
        lengths: lengths.map(({ queryLen, kvLen }) => [queryLen, kvLen] as const),
      });
      for (const scaling of scalings(8)) {
        const rope: RopeSpec = { headDim: 16, rotaryDim: 16, style, theta: 1000, scaling };
        const table = new RopeTable(rope, 500).rows(500);
        const { queries, slots } = positionIds({ batch: made.batch, spec: defaultSpec({ pageSize: 4 }) });
        const before = {
          ...made,
          qPe: await rotated(rope, made.qPe, queries, table),
          kpe: await rotated(rope, made.kpe, slots, table),
        };
        const want = await attendMla(test, before, { form, rebuiltTokens: 16 });
        const batch = { ...made.batch, positionOffsets: Int32Array.from(offsets) };
        const ropeTable = test.f32([500, 16], table);
        const got = await attendMla(
          test,
          { ...made, batch },
          { form, rope: { style }, rebuiltTokens: 16 },
          { ropeTable },
        );
        expect(largestError(got.out, want.out), scaling.type).toBeLessThan(5e-6);
        expect(largestError(got.lse, want.lse), scaling.type).toBeLessThan(5e-6);
      }
    });
  });
});
