import * as fc from "fast-check";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices, worstError } from "../../test/ops/testDevice.ts";
import { type CascadeSpec, MultiLevelCascadeAttention } from "./cascade.ts";
import {
  type AttentionBatch,
  type AttentionInputs,
  attentionReference,
  nhdStrides,
  packVisible,
  RopeTable,
} from "./index.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };

/** Sequences of one level: how many of the next level's (at the last level: how many query rows) each one serves, and its own keys. */
interface Sequence {
  readonly members: number;
  readonly kvLen: number;
}

/** Levels from the outermost prefix to the sequences themselves. */
type Tree = readonly (readonly Sequence[])[];

const pageSize = 4;
const base: CascadeSpec = {
  headDim: 16,
  numQHeads: 6,
  numKvHeads: 2,
  pageSize,
  storage: "f32",
  causal: true,
  smScale: 0.25,
  returnLse: true,
};

/**
 * The tree as one batch a level, over pages in no order, and as the flat batch that it stands for: pages of one token each, the keys of
 * all levels in a row. NaN lies in every slot that no sequence has.
 */
function cascadeCase(spec: CascadeSpec, tree: Tree, padRows = 0) {
  const { numKvHeads, numQHeads, headDim, headDimV = headDim } = spec;
  const numPages = tree.flat().reduce((sum, { kvLen }) => sum + Math.ceil(kvLen / pageSize), 2);
  const pages = Array.from({ length: numPages }, (_, i) => (i * 7 + 3) % numPages);
  const order = new Set(pages).size === numPages ? pages : pages.map((_, i) => numPages - 1 - i);
  const k = new Float32Array(numPages * pageSize * numKvHeads * headDim).fill(NaN);
  const v = new Float32Array(numPages * pageSize * numKvHeads * headDimV).fill(NaN);
  let nextPage = 0;
  /** Page ids of each sequence, and its tokens as numbers of slots in the pool. */
  const held = tree.map((level) =>
    level.map(({ kvLen }) => {
      const ids = Array.from({ length: Math.ceil(kvLen / pageSize) }, () => order[nextPage++]);
      const slots = Array.from({ length: kvLen }, (_, t) => ids[Math.floor(t / pageSize)] * pageSize + (t % pageSize));
      for (const slot of slots) {
        k.set(normals(numKvHeads * headDim, 1 + slot), slot * numKvHeads * headDim);
        v.set(normals(numKvHeads * headDimV, 1001 + slot), slot * numKvHeads * headDimV);
      }
      return { ids, slots };
    }),
  );
  // Rows of each sequence, from the last level up.
  const rows = tree.map((level) => level.map(() => 0));
  for (let l = tree.length - 1; l >= 0; l--) {
    let child = 0;
    for (const [s, { members }] of tree[l].entries()) {
      if (l === tree.length - 1) rows[l][s] = members;
      else for (let i = 0; i < members; i++) rows[l][s] += rows[l + 1][child++];
    }
  }
  const numQueries = rows[0].reduce((a, b) => a + b, 0);
  const indptr = (counts: readonly number[]): Int32Array => {
    const result = new Int32Array(counts.length + 1);
    for (const [i, count] of counts.entries()) result[i + 1] = result[i] + count;
    return result;
  };
  const levels = tree.map((level, l): AttentionBatch => {
    const lists = held[l].map(({ ids }) => ids);
    return {
      numRows: numQueries + padRows,
      numSeqs: level.length,
      queryIndptr: indptr(rows[l]),
      kvLens: Int32Array.from(level, ({ kvLen }) => kvLen),
      blockTables: Int32Array.from(lists.flat()),
      pageIndptr: indptr(lists.map(({ length }) => length)),
      maxPages: 0,
      numPages,
    };
  });
  const last = levels[tree.length - 1];
  const tokens = tree[tree.length - 1].map((_, s) =>
    levels.flatMap(({ queryIndptr, numSeqs }, l) => {
      const row = last.queryIndptr[s];
      const own =
        l === tree.length - 1 ? s : Array.from({ length: numSeqs }).findIndex((_, g) => row < queryIndptr[g + 1]);
      return held[l][own]?.slots ?? [];
    }),
  );
  const flat: AttentionBatch = {
    ...last,
    kvLens: Int32Array.from(tokens, ({ length }) => length),
    blockTables: Int32Array.from(tokens.flat()),
    pageIndptr: indptr(tokens.map(({ length }) => length)),
    numPages: numPages * pageSize,
    allowUnseeing: true,
  };
  const q = normals((numQueries + padRows) * numQHeads * headDim, 5);
  q.fill(NaN, numQueries * numQHeads * headDim);
  return { levels, flat, q, k, v, numPages };
}

type Case = ReturnType<typeof cascadeCase>;

function onReference(spec: CascadeSpec, { flat, q, k, v }: Case, more: Partial<AttentionInputs> = {}) {
  const { numKvHeads, headDim, headDimV = headDim } = spec;
  return attentionReference({ ...spec, pageSize: 1 }, flat, {
    q,
    kPages: k,
    vPages: v,
    kStrides: nhdStrides({ numKvHeads, headDim }),
    vStrides: nhdStrides({ numKvHeads, headDim: headDimV }),
    ...more,
  });
}

const twoLevels: Tree = [
  [{ members: 4, kvLen: 65 }],
  [
    { members: 1, kvLen: 37 },
    { members: 1, kvLen: 1 },
    { members: 1, kvLen: 17 },
    { members: 1, kvLen: 64 },
  ],
];
const appended: Tree = [
  [
    { members: 2, kvLen: 40 },
    { members: 1, kvLen: 3 },
    { members: 1, kvLen: 0 },
  ],
  [
    { members: 5, kvLen: 37 },
    { members: 9, kvLen: 9 },
    { members: 12, kvLen: 12 },
    { members: 2, kvLen: 8 },
  ],
];
const threeLevels: Tree = [
  [
    { members: 2, kvLen: 300 },
    { members: 1, kvLen: 5 },
  ],
  [
    { members: 2, kvLen: 33 },
    { members: 1, kvLen: 0 },
    { members: 2, kvLen: 8 },
  ],
  [
    { members: 1, kvLen: 5 },
    { members: 3, kvLen: 16 },
    { members: 1, kvLen: 31 },
    { members: 0, kvLen: 4 },
    { members: 2, kvLen: 2 },
  ],
];

describe.each(Object.entries(testDevices))("cascade attention on %s", (_name, create) => {
  let test: TestDevice;
  const open: MultiLevelCascadeAttention[] = [];
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => {
    for (const attention of open.splice(0)) attention.release();
    test.clear();
  });
  afterAll(() => test.close());

  const cascade = (numLevels: number, spec: CascadeSpec): MultiLevelCascadeAttention => {
    const attention = new MultiLevelCascadeAttention(test.device, numLevels, spec);
    open.push(attention);
    return attention;
  };

  const tensors = (spec: CascadeSpec, { levels, numPages, q, k, v }: Case) => {
    const { numKvHeads, numQHeads, headDim, headDimV = headDim } = spec;
    const { numRows } = levels[0];
    return {
      q: test.f32([numRows, numQHeads, headDim], q),
      cache: {
        k: test.f32([numPages, pageSize, numKvHeads, headDim], k),
        v: test.f32([numPages, pageSize, numKvHeads, headDimV], v),
      },
      out: test.f32([numRows, numQHeads, headDimV], new Float32Array(numRows * numQHeads * headDimV).fill(123)),
      lse: test.f32([numRows, numQHeads], new Float32Array(numRows * numQHeads).fill(123)),
    };
  };

  const expectEqual = (got: Float32Array, want: Float64Array): void => {
    const finite = [...want.keys()].filter((i) => want[i] !== -Infinity);
    for (const [i, value] of want.entries()) if (value === -Infinity) expect(got[i]).toBe(-Infinity);
    const pick = (values: ArrayLike<number>): number[] => finite.map((i) => values[i]);
    expect(worstError(pick(got), pick(want), tolerance)).toBeLessThanOrEqual(1);
  };

  it.each([
    ["decoding with one shared prefix", twoLevels, base],
    ["appending, prefixes of any length", appended, base],
    ["appending where the last level sees all", appended, { ...base, causal: false }],
    ["three levels, some of them empty", threeLevels, base],
    ["one level", [twoLevels[1]] satisfies Tree, base],
    ["base 2 and a soft cap", threeLevels, { ...base, lseBase: "2", softCap: 1.5 }],
    ["values of another width", appended, { ...base, headDim: 24, headDimV: 10 }],
    ["a mask value", appended, { ...base, maskValue: -2 }],
  ] satisfies [string, Tree, CascadeSpec][])("equals flat attention: %s", async (_, tree, spec) => {
    const given = cascadeCase(spec, tree, 3);
    const attention = cascade(tree.length, spec);
    attention.plan(given.levels);
    const args = tensors(spec, given);
    await attention.run(args);
    const { out, lse } = onReference(spec, given);
    expectEqual(test.readF32(args.out), out);
    expectEqual(test.readF32(args.lse), lse);
  });

  it("equals flat attention for any tree of prefixes", async () => {
    const kvLen = fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 90 }));
    const leaf = fc.tuple(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 40 }));
    const branches = fc.array(fc.tuple(kvLen, fc.array(leaf, { minLength: 1, maxLength: 3 })), {
      minLength: 1,
      maxLength: 3,
    });
    const roots = fc.array(fc.tuple(kvLen, branches), { minLength: 1, maxLength: 2 });
    const specs = fc.constantFrom<CascadeSpec>(
      { ...base, splitSize: 32 },
      { ...base, splitSize: 32, numQHeads: 4, storage: "f32", lseBase: "2", softCap: 2, headDim: 10, headDimV: 7 },
    );
    await fc.assert(
      fc.asyncProperty(roots, specs, async (tree, spec) => {
        const middle = tree.flatMap(([, children]) => children);
        const leaves = middle.flatMap(([, children]) => children);
        const given = cascadeCase(
          spec,
          [
            tree.map(([length, children]) => ({ members: children.length, kvLen: length })),
            middle.map(([length, children]) => ({ members: children.length, kvLen: length })),
            leaves.map(([members, context]) => ({ members, kvLen: members + context })),
          ],
          1,
        );
        const attention = cascade(3, spec);
        attention.plan(given.levels);
        const args = tensors(spec, given);
        await attention.run(args);
        const { out, lse } = onReference(spec, given);
        expectEqual(test.readF32(args.out), out);
        expectEqual(test.readF32(args.lse), lse);
        attention.release();
        test.clear();
      }),
      { numRuns: 20, seed: 3 },
    );
  });

  it.each(["e", "2"] as const)("applies sinks once, at the end, base %s", async (lseBase) => {
    const spec: CascadeSpec = { ...base, sinks: true, lseBase };
    const given = cascadeCase(spec, threeLevels, 2);
    const attention = cascade(3, spec);
    attention.plan(given.levels);
    const args = tensors(spec, given);
    const sinks = normals(spec.numQHeads, 9).map((value) => 2 + value);
    await attention.run({ ...args, sinks: test.f32([spec.numQHeads], sinks) });
    const { out, lse } = onReference(spec, given, { sinks });
    expectEqual(test.readF32(args.out), out);
    expectEqual(test.readF32(args.lse), lse);
  });

  it("takes a custom mask for the last level, as trees of drafted tokens have", async () => {
    const spec: CascadeSpec = { ...base, causal: false, customMask: true };
    const given = cascadeCase(spec, appended);
    const last = given.levels[1];
    const sees = (s: number, i: number, t: number): boolean => (s + 3 * i + t) % 3 !== 0;
    const pack = ({ numSeqs, queryIndptr, kvLens }: AttentionBatch, visible: typeof sees) => {
      const qLens = Array.from({ length: numSeqs }, (_, s) => queryIndptr[s + 1] - queryIndptr[s]);
      return packVisible({ qLens, kvLens }, visible);
    };
    const prefixLen = (s: number): number => given.flat.kvLens[s] - last.kvLens[s];
    const flatMask = pack(given.flat, (s, i, t) => t < prefixLen(s) || sees(s, i, t - prefixLen(s)));
    const attention = cascade(2, spec);
    attention.plan([given.levels[0], { ...last, customMask: pack(last, sees) }]);
    const args = tensors(spec, given);
    await attention.run(args);
    const masked = { ...given, flat: { ...given.flat, customMask: flatMask } };
    const { out, lse } = onReference(spec, masked);
    expectEqual(test.readF32(args.out), out);
    expectEqual(test.readF32(args.lse), lse);
  });

  it("rotates keys by their place in the whole sequence", async () => {
    const spec: CascadeSpec = { ...base, rope: { style: "halves", dim: 8, offset: 4 } };
    const given = cascadeCase(spec, threeLevels);
    const rope = { headDim: 16, rotaryDim: 8, theta: 100, style: "halves", scaling: { type: "default" } } as const;
    const ropeTable = new RopeTable(rope).rows(400);
    const attention = cascade(3, spec);
    attention.plan(given.levels);
    const args = tensors(spec, given);
    await attention.run({ ...args, ropeTable: test.f32([400, 8], ropeTable) });
    const { out, lse } = onReference(spec, given, { ropeTable });
    expectEqual(test.readF32(args.out), out);
    expectEqual(test.readF32(args.lse), lse);
  });

  it("plans again with other sizes, allocates what it is not given, and gives all memory back", async () => {
    const spec: CascadeSpec = { ...base, returnLse: false };
    const usedBytes: number[] = [];
    for (let round = 0; round < 2; round++) {
      const attention = cascade(2, spec);
      for (const tree of [twoLevels, appended, twoLevels]) {
        const given = cascadeCase(spec, tree);
        attention.plan(given.levels);
        const { out: _out, lse: _lse, ...args } = tensors(spec, given);
        const result = await attention.run(args);
        expect(result.lse).toBeUndefined();
        const got = test.device.f32At(result.out.pointer, given.levels[0].numRows * 6 * 16);
        expectEqual(got.slice(), onReference(spec, given).out);
        if (result.out.buffer) test.device.free(result.out.buffer);
      }
      attention.release();
      test.clear();
      usedBytes.push(test.device.stats().usedBytes);
    }
    expect(usedBytes[1]).toBe(usedBytes[0]);
  });

  it("gives a row the same bits whoever shares its prefix", async () => {
    const alone: Tree = [[{ members: 1, kvLen: 65 }], [{ members: 1, kvLen: 37 }]];
    const results: Uint32Array[] = [];
    for (const tree of [alone, twoLevels]) {
      const spec: CascadeSpec = { ...base, splitSize: 32 };
      const given = cascadeCase(spec, twoLevels);
      const own = cascadeCase(spec, tree);
      const levels = own.levels.map((batch, l) => ({
        ...batch,
        numRows: 4,
        blockTables: given.levels[l].blockTables,
        numPages: given.numPages,
      }));
      const attention = cascade(2, spec);
      attention.plan(levels);
      const args = tensors(spec, given);
      await attention.run(args);
      results.push(bitsOf(test.readF32(args.out).slice(0, 96)));
    }
    expect(results[0]).toEqual(results[1]);
  });

  it("refuses by name what has no meaning across levels, and what does not fit", async () => {
    const refuses = (spec: object, message: string): void =>
      expect(() => cascade(2, { ...base, ...spec })).toThrow(message);
    refuses({ slidingWindow: 8 }, "slidingWindow has no meaning across levels");
    refuses({ alibi: true }, "alibi has no meaning across levels");
    refuses({ rope: { style: "halves", dim: 8, queries: true } }, "rope.queries has no meaning across levels");
    expect(() => cascade(0, base)).toThrow("numLevels must be an integer of at least 1, got 0");

    const given = cascadeCase(base, twoLevels);
    const [first, last] = given.levels;
    const attention = cascade(2, base);
    const args = tensors(base, given);
    expect(() => attention.plan([first])).toThrow("levels must be 2 batches, one for each level, got 1");
    expect(() => attention.plan([first, { ...last, numRows: 9 }])).toThrow(
      "levels[1].numRows must be that of levels[0] = 4",
    );
    expect(() => attention.plan([first, { ...last, numPages: 3 }])).toThrow(/^levels\[1\]: blockTables\[/);
    expect(() => attention.plan([first, { ...last, numPages: 3 }], { checkPages: false })).not.toThrow();
    attention.plan(given.levels);
    const sinks = test.f32([6], new Float32Array(6));
    await expect(attention.run({ ...args, sinks })).rejects.toThrow("sinks must be absent");
    await expect(cascade(2, { ...base, sinks: true }).run(args)).rejects.toThrow("sinks must be given");
    await expect(cascade(2, { ...base, returnLse: false }).run(args)).rejects.toThrow("lse must be absent");

    const rotating = cascade(2, { ...base, rope: { style: "halves", dim: 8 } });
    const halves = {
      ...first,
      numSeqs: 2,
      queryIndptr: Int32Array.of(0, 1, 3),
      kvLens: Int32Array.of(4, 4),
      pageIndptr: Int32Array.of(0, 1, 2),
    };
    expect(() => rotating.plan([halves, last])).toThrow(
      "levels[1]: rows 3 to 4 of sequence 3 must lie in one sequence of levels[0]",
    );
  });
});
