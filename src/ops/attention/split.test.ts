import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type AttentionResult,
  bits,
  defaultSpec,
  type Lengths,
  largestError,
} from "../../../test/fixtures/attention/ragged.ts";
import {
  type Variant,
  variantCase,
  variantOnDevice,
  variantOnReference,
} from "../../../test/fixtures/attention/variants.ts";
import { CpuDevice } from "../../devices/index.ts";
import { mergeStates } from "../mergeStates/index.ts";
import type { AttentionSpec } from "./contract.ts";

let devices: CpuDevice[];
beforeAll(async () => {
  devices = await Promise.all([1, 3].map((threads) => CpuDevice.create({ threads })));
});
afterAll(async () => {
  await Promise.all(devices.map((device) => device.close()));
});

const mla: Partial<AttentionSpec> = { headDim: 40, headDimV: 32, numKvHeads: 1, mla: { ropeDim: 8 } };
const latent: Partial<AttentionSpec> = {
  headDim: 12,
  headDimV: 20,
  storage: "f32",
  latent: { maxRankK: 24, keys: "rebuilt", bias: true },
  rope: { style: "halves", dim: 12 },
};
const ranks = { ranksK: [24, 9], ranksV: [5, 20] };

/** What may be hidden depends on positions alone in the first list, and on the length of the sequence in the second. */
const causalVariants: readonly (readonly [string, Variant])[] = [
  ["sinks", { spec: defaultSpec({ sinks: true }) }],
  ["a custom mask", { spec: defaultSpec({ causal: false, customMask: true, sinks: true }) }],
  [
    "values of another width, ALiBi, base 2",
    { spec: defaultSpec({ headDim: 24, headDimV: 10, alibi: true, lseBase: "2" }) },
  ],
  [
    "keys rotated on load, a window",
    { spec: defaultSpec({ rope: { style: "interleaved", dim: 8 }, slidingWindow: 90 }) },
  ],
  ["int8 rows, head dimension 13", { spec: defaultSpec({ headDim: 13, storage: "i8" }) }],
  [
    "4-bit keys and 3-bit values",
    {
      spec: defaultSpec({
        headDim: 32,
        storage: { kind: "grouped", bits: 4, groupSize: 16 },
        valueStorage: { kind: "grouped", bits: 3, groupSize: 0 },
      }),
    },
  ],
  ["MLA", { spec: defaultSpec(mla) }],
  [
    "MLA over tiles of e4m3, sinks",
    {
      spec: defaultSpec({ ...mla, storage: { kind: "tiled", tile: 16 }, valueStorage: "bf16", sinks: true }),
    },
  ],
  ["rebuilt latents of different ranks", { spec: defaultSpec(latent), ranks }],
  [
    "rebuilt latents, the last tokens apart",
    {
      spec: defaultSpec({ ...latent, latent: { maxRankK: 24, keys: "rebuilt", recent: "f32" }, rope: undefined }),
      ranks,
    },
  ],
  [
    "absorbed latents",
    {
      spec: defaultSpec({ ...latent, headDim: 24, latent: { maxRankK: 24, keys: "absorbed" }, rope: undefined }),
      ranks,
    },
  ],
];
const wholeVariants: readonly (readonly [string, Variant])[] = [
  ["a mask value", { spec: defaultSpec({ maskValue: -1.5, slidingWindow: 40 }) }],
  ["MLA without a mask", { spec: defaultSpec({ ...mla, causal: false }) }],
];

const withSplit = ({ spec, ranks }: Variant, splitSize: number): Variant => ({ spec: { ...spec, splitSize }, ranks });

describe("any split of the keys gives the result", () => {
  const lengths: readonly Lengths[] = [
    { queryLen: 1, kvLen: 333 },
    { queryLen: 7, kvLen: 130 },
    { queryLen: 0, kvLen: 0 },
    { queryLen: 3, kvLen: 64 },
    { queryLen: 45, kvLen: 45 },
  ];
  it.each([...causalVariants, ...wholeVariants])("within 1e-5: %s", async (_, variant) => {
    const expected = variantOnReference(variantCase(variant, lengths, 2));
    for (const splitSize of [32, 96, 4096]) {
      for (const device of splitSize === 32 ? devices : devices.slice(1)) {
        const got = await variantOnDevice(device, variantCase(withSplit(variant, splitSize), lengths, 2), 1000);
        expect(largestError(got.out, expected.out)).toBeLessThanOrEqual(1e-5);
        expect(largestError(got.lse, expected.lse)).toBeLessThanOrEqual(1e-5);
      }
    }
  });
});

describe("a fixed split gives a token the same bits", () => {
  const others: readonly Lengths[] = [
    { queryLen: 40, kvLen: 40 },
    { queryLen: 0, kvLen: 0 },
    { queryLen: 9, kvLen: 200 },
  ];
  const total = 150;

  /** Compares every token of sequence 0 with what it was in the batches before. */
  function comparison(variant: Variant) {
    const seen = new Map<number, string>();
    return {
      seen,
      async meet(lengths: readonly Lengths[], device: CpuDevice, planThreads: number, padRows = 0): Promise<void> {
        const given = variantCase(variant, lengths, padRows);
        const { out, lse } = await variantOnDevice(device, given, planThreads);
        const [{ queryLen, kvLen }] = lengths;
        const outRow = out.length / given.batch.numRows;
        const heads = variant.spec.numQHeads;
        for (let i = 0; i < queryLen; i++) {
          const position = kvLen - queryLen + i;
          const words = [
            ...bits(out.subarray(i * outRow, (i + 1) * outRow)),
            ...bits(lse.subarray(i * heads, (i + 1) * heads)),
          ];
          const result = words.join();
          expect(`${position}: ${result}`).toBe(`${position}: ${seen.get(position) ?? result}`);
          seen.set(position, result);
        }
      },
    };
  }

  it.each(causalVariants)("in any chunking, company, padding and number of threads: %s", async (_, variant) => {
    const { seen, meet } = comparison(withSplit(variant, 64));
    for (const device of devices) {
      for (const planThreads of [1, 1000]) {
        await meet([{ queryLen: total, kvLen: total }], device, planThreads);
        await meet([{ queryLen: total, kvLen: total }, ...others], device, planThreads, 5);
        await meet([{ queryLen: 1, kvLen: total }, ...others], device, planThreads);
        for (let end = 50; end <= total; end += 50) await meet([{ queryLen: 50, kvLen: end }], device, planThreads);
      }
      for (let end = 1; end <= total; end += 37)
        await meet([{ queryLen: 1, kvLen: end }, ...others], device, 1000, end % 3);
    }
    expect(seen.size).toBe(total);
  });

  it.each(wholeVariants)("in any company, padding and number of threads: %s", async (_, variant) => {
    const { meet } = comparison(withSplit(variant, 64));
    for (const device of devices) {
      for (const planThreads of [1, 1000]) {
        await meet([{ queryLen: 20, kvLen: total }], device, planThreads);
        await meet([{ queryLen: 20, kvLen: total }, ...others], device, planThreads, 3);
        await meet([{ queryLen: 1, kvLen: total }, ...others], device, planThreads, 1);
      }
    }
  });
});

describe("context in chunks, some of them empty for a sequence", () => {
  it.each([
    ["plain heads", { spec: defaultSpec({ causal: false }) }],
    ["MLA", { spec: defaultSpec({ ...mla, causal: false, lseBase: "2" }) }],
  ] satisfies [string, Variant][])(
    "gives out 0 and lse -infinity there, and merges to the whole: %s",
    async (_, variant) => {
      const { spec } = variant;
      const lengths = [70, 0, 33, 64].map((kvLen) => ({ queryLen: 2, kvLen }));
      const whole = variantCase(variant, lengths);
      const batch = { ...whole.batch, allowUnseeing: true };
      const expected = variantOnReference({ ...whole, batch });
      const chunkTokens = 32;
      const chunkPages = chunkTokens / (spec.pageSize ?? 1);
      const states: AttentionResult[] = [];
      for (let chunk = 0; chunk < 3; chunk++) {
        const kvLens = batch.kvLens.map((kvLen) => Math.max(0, Math.min(chunkTokens, kvLen - chunk * chunkTokens)));
        const blockTables = new Int32Array(batch.blockTables.length).fill(-1);
        blockTables.set(batch.blockTables.subarray(chunk * chunkPages));
        const state = await variantOnDevice(devices[1], { ...whole, batch: { ...batch, kvLens, blockTables } }, 1000);
        for (const [s, kvLen] of kvLens.entries()) {
          if (kvLen > 0) continue;
          const rows = (values: Float32Array) => [
            ...values.subarray((s * values.length) / 4, ((s + 1) * values.length) / 4),
          ];
          expect(rows(state.out).every((value) => value === 0)).toBe(true);
          expect(rows(state.lse).every((value) => value === -Infinity)).toBe(true);
        }
        states.push(state);
      }
      const { numQHeads, headDim, headDimV = headDim, lseBase } = spec;
      const byRow = (name: "out" | "lse", rowLength: number): number[] =>
        Array.from({ length: 8 }, (_, row) =>
          states.flatMap((state) => [...state[name].subarray(row * rowLength, (row + 1) * rowLength)]),
        ).flat();
      const merged = mergeStates(
        { numHeads: numQHeads, headDim: headDimV, lseBase },
        3,
        byRow("out", numQHeads * headDimV),
        byRow("lse", numQHeads),
      );
      expect(largestError(Float32Array.from(merged.v), expected.out)).toBeLessThanOrEqual(1e-5);
      expect(largestError(Float32Array.from(merged.s), expected.lse)).toBeLessThanOrEqual(1e-5);
    },
  );
});
