import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  attendMla,
  type MlaCaseOptions,
  makeMlaCase,
  putMlaCase,
  referenceInputs,
} from "../../../test/fixtures/attention/mlaCase.ts";
import { bitsOf, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { RopeTable } from "../../ops/rope/index.ts";
import { BatchMLAPagedAttention, type MlaStepForm, mlaAbsorbThreshold, mlaReference } from "./index.ts";

/** Latents of 512 channels are summed in f32; outputs and logits are of order 1. */
const tolerance = { relative: 1e-5, absolute: 1e-5 };

const deepSeek = { kvLoraRank: 512, qkRopeHeadDim: 64, qkNopeHeadDim: 128, vHeadDim: 128 };
const miniCpm = { kvLoraRank: 256, qkRopeHeadDim: 32, qkNopeHeadDim: 64, vHeadDim: 64 };
const small = { kvLoraRank: 32, qkRopeHeadDim: 8, qkNopeHeadDim: 16, vHeadDim: 24 };

/** A selection of the grids of FlashInfer and FlashMLA: every value of each axis at least once. */
const grid: readonly (readonly [string, MlaCaseOptions])[] = [
  [
    "DeepSeek, 1 head, pages of 1",
    {
      ...deepSeek,
      numHeads: 1,
      pageSize: 1,
      lengths: [
        [1, 33],
        [1, 0],
        [3, 17],
      ],
    },
  ],
  [
    "DeepSeek, 3 heads, pages of 64",
    {
      ...deepSeek,
      numHeads: 3,
      pageSize: 64,
      lengths: [
        [2, 140],
        [4, 20],
      ],
    },
  ],
  [
    "MiniCPM3, 40 heads, pages of 16",
    {
      ...miniCpm,
      numHeads: 40,
      pageSize: 16,
      lengths: [
        [1, 97],
        [5, 114],
        [1, 16],
      ],
    },
  ],
  ["c 256 with 64 rope channels", { ...miniCpm, qkRopeHeadDim: 64, numHeads: 2, pageSize: 32, lengths: [[7, 75]] }],
  [
    "c 256 without rope",
    {
      ...miniCpm,
      qkRopeHeadDim: 0,
      numHeads: 3,
      pageSize: 16,
      lengths: [
        [3, 54],
        [1, 1],
      ],
    },
  ],
  [
    "9 heads, pages of 128",
    {
      ...small,
      numHeads: 9,
      pageSize: 128,
      lengths: [
        [17, 514],
        [1, 128],
      ],
    },
  ],
  [
    "63 heads, not causal",
    {
      ...small,
      numHeads: 63,
      pageSize: 8,
      lengths: [
        [2, 17],
        [9, 40],
      ],
      causal: false,
    },
  ],
  [
    "126 heads",
    {
      ...small,
      numHeads: 126,
      pageSize: 16,
      lengths: [
        [1, 114],
        [3, 3],
      ],
    },
  ],
  ["128 heads, many chunks", { ...small, numHeads: 128, pageSize: 16, lengths: [[1, 1100]] }],
  [
    "dimensions that no register divides",
    {
      kvLoraRank: 37,
      qkRopeHeadDim: 6,
      qkNopeHeadDim: 11,
      vHeadDim: 9,
      numHeads: 5,
      pageSize: 3,
      lengths: [
        [4, 70],
        [2, 2],
      ],
    },
  ],
  [
    "two empty sequences in a row",
    {
      ...small,
      numHeads: 4,
      pageSize: 4,
      lengths: [
        [0, 9],
        [0, 0],
        [1, 0],
        [2, 5],
      ],
      paddingRows: 3,
    },
  ],
  ["f16 cache", { ...small, numHeads: 6, pageSize: 16, lengths: [[3, 45]], storage: "f16" }],
  ["bf16 cache", { ...small, numHeads: 6, pageSize: 16, lengths: [[3, 45]], storage: "bf16" }],
  ["8-bit cache", { ...small, numHeads: 6, pageSize: 16, lengths: [[3, 45]], storage: "f8e4m3" }],
];

/** Made once for all devices and forms: the references take longest. */
const cases = new Map<MlaCaseOptions, ReturnType<typeof madeCase>>();

function madeCase(options: MlaCaseOptions) {
  const made = makeMlaCase(options);
  return { made, want: mlaReference(made.spec, made.batch, referenceInputs(made)) };
}

describe.each(Object.entries(testDevices))("latent attention on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  function expectSame(
    got: { out: Float32Array; lse: Float32Array; z?: Float32Array },
    want: ReturnType<typeof mlaReference>,
  ) {
    expect(worstError(got.out, want.o, tolerance)).toBeLessThan(1);
    expect([...got.lse].filter((value) => value === -Infinity).length).toBe(
      [...want.lse].filter((value) => value === -Infinity).length,
    );
    expect(worstError(got.lse.map(finite), want.lse.map(finite), tolerance)).toBeLessThan(1);
    if (got.z) expect(worstError(got.z, want.z, tolerance)).toBeLessThan(1);
  }

  describe.each(["absorbed", "rebuilt"] as const)("%s", (form) => {
    it.each(grid)("equals the reference: %s", async (_words, options) => {
      const { made, want } = cases.get(options) ?? madeCase(options);
      cases.set(options, { made, want });
      // Few enough that contexts come in chunks, and that some sequences have none in one.
      expectSame(await attendMla(test, made, { form, rebuiltTokens: 40 }), want);
    });

    it("reads a fused cache, and lets no rope channel into the output", async () => {
      const made = makeMlaCase({
        ...small,
        numHeads: 3,
        pageSize: 4,
        lengths: [
          [5, 21],
          [1, 8],
        ],
      });
      const separate = await attendMla(test, made, { form });
      const fused = await attendMla(test, made, { form }, {}, true);
      expect(bitsOf(fused.out)).toEqual(bitsOf(separate.out));
      expect(bitsOf(fused.lse)).toEqual(bitsOf(separate.lse));
    });

    it("rotates queries and keys of an unrotated cache at their positions", async () => {
      const made = makeMlaCase({
        ...small,
        numHeads: 3,
        pageSize: 4,
        lengths: [
          [5, 50],
          [1, 8],
          [2, 2],
        ],
      });
      for (const style of ["interleaved", "halves"] as const) {
        const rope = { headDim: 8, rotaryDim: 8, style, theta: 100, scaling: { type: "default" as const } };
        const table = test.f32([60, 8], new RopeTable(rope).rows(60));
        const positionOffsets = Int32Array.of(3, 0, 7);
        const batch = { ...made.batch, positionOffsets };
        const got = await attendMla(
          test,
          { ...made, batch },
          { form, rope: { style }, rebuiltTokens: 16 },
          { ropeTable: table },
        );
        expectSame(got, mlaReference({ ...made.spec, rope }, batch, referenceInputs(made)));
      }
    });

    it("takes the scales of 8-bit latents and rope keys, and sinks", async () => {
      const made = makeMlaCase({
        ...small,
        numHeads: 3,
        pageSize: 4,
        lengths: [
          [4, 30],
          [1, 0],
        ],
        storage: "f8e4m3",
      });
      const sinks = [0.5, -1, 3];
      const scaled = {
        ...referenceInputs(made),
        ckvCache: made.ckv.map((value) => value * 0.5),
        kpeCache: made.kpe.map((value) => value * 2),
        sinks,
      };
      const args = { ckvScale: 0.5, kpeScale: 2, sinks: test.f32([3], sinks) };
      const got = await attendMla(test, made, { form, sinks: true, rebuiltTokens: 8 }, args);
      expectSame(got, mlaReference(made.spec, made.batch, scaled));
    });

    it("returns the LSE in base 2, and none if none is wanted", async () => {
      const made = makeMlaCase({ ...small, numHeads: 2, pageSize: 4, lengths: [[3, 30]] });
      const [natural, binary] = [
        await attendMla(test, made, { form }),
        await attendMla(test, made, { form, lseBase: "2", rebuiltTokens: 7 }),
      ];
      const expected = natural.lse.map((value) => value / Math.LN2);
      expect(worstError(binary.lse, expected, tolerance)).toBeLessThan(1);
      expect(worstError(binary.out, natural.out, tolerance)).toBeLessThan(1);
      const put = putMlaCase(test, made);
      const attention = new BatchMLAPagedAttention(test.device, { ...made.spec, rope: undefined, form });
      attention.plan(made.batch);
      const result = await attention.run({ ...put, cache: put.separate() });
      expect(result.lse).toBeUndefined();
      expect(test.device.f32At(result.out.pointer, natural.out.length)).toEqual(natural.out);
      if (result.out.buffer) test.device.free(result.out.buffer);
      attention.release();
    });

    it("makes rows past the batch zeros, whatever the padding holds", async () => {
      const lengths = [
        [2, 9],
        [1, 20],
      ] as const;
      const plain = makeMlaCase({ ...small, numHeads: 2, pageSize: 4, lengths });
      const padded = makeMlaCase({ ...small, numHeads: 2, pageSize: 4, lengths, paddingRows: 5 });
      const made = { ...plain, batch: { ...plain.batch, numRows: 8 }, qNope: padded.qNope, qPe: padded.qPe };
      made.qNope.set(plain.qNope);
      made.qPe.set(plain.qPe);
      const [alone, got] = [await attendMla(test, plain, { form }), await attendMla(test, made, { form })];
      expect(bitsOf(got.out.subarray(0, alone.out.length))).toEqual(bitsOf(alone.out));
      expect(got.out.subarray(alone.out.length).every((value) => value === 0)).toBe(true);
      expect(got.lse.subarray(alone.lse.length).every((value) => value === -Infinity)).toBe(true);
    });
  });

  it("switches at the threshold, and agrees on both sides of it", async () => {
    const options = { ...small, numHeads: 2, pageSize: 4 };
    const lengths = [
      [1, 30],
      [2, 31],
      [6, 32],
      [9, 33],
      [1, 34],
      [12, 12],
    ] as const;
    const made = makeMlaCase({ ...options, lengths, paddingRows: 2 });
    const want = mlaReference(made.spec, made.batch, referenceInputs(made));
    const forms = async (absorbThreshold: number): Promise<MlaStepForm[]> => {
      const got = await attendMla(test, made, { absorbThreshold, rebuiltTokens: 10 });
      expectSame(got, want);
      return got.segments.map(({ form }) => form);
    };
    expect(await forms(0)).toEqual(["rebuilt"]);
    expect(await forms(6)).toEqual(["absorbed", "rebuilt", "absorbed", "rebuilt"]);
    expect(await forms(7)).toEqual(["absorbed", "rebuilt", "absorbed", "rebuilt"]);
    expect(await forms(100)).toEqual(["absorbed"]);
    // The default: where rebuilding begins to take fewer operations.
    const threshold = mlaAbsorbThreshold(made.spec, 200);
    const atThreshold = makeMlaCase({
      ...options,
      lengths: [
        [threshold - 1, 200],
        [threshold, 200],
      ],
    });
    const got = await attendMla(test, atThreshold, {});
    expect(got.segments.map(({ form }) => form)).toEqual(["absorbed", "rebuilt"]);
    expectSame(got, mlaReference(atThreshold.spec, atThreshold.batch, referenceInputs(atThreshold)));
  });

  it("takes compressed page lists, and can be planned again for another step", async () => {
    const attention = new BatchMLAPagedAttention(test.device, {
      ...small,
      numHeads: 2,
      pageSize: 4,
      smScale: 0.2,
      causal: true,
      rebuiltTokens: 8,
      absorbThreshold: 3,
    });
    const keys = new Set<string>();
    for (const lengths of [
      [
        [1, 9],
        [4, 20],
      ],
      [
        [5, 31],
        [1, 2],
        [0, 3],
      ],
      [[1, 1]],
      [],
    ] as const) {
      const made = makeMlaCase({ ...small, numHeads: 2, pageSize: 4, smScale: 0.2, lengths, paddingRows: 1 });
      const { maxPages, numSeqs } = made.batch;
      const pageIndptr = Int32Array.from({ length: numSeqs + 1 }, (_, s) => s * maxPages);
      const put = putMlaCase(test, made);
      const out = put.result(24);
      attention.plan({ ...made.batch, pageIndptr, maxPages: -1 });
      keys.add(attention.recordingKey);
      await test.run((recorder) => attention.record(recorder, { ...put, cache: put.separate(), out }));
      const want = mlaReference(made.spec, made.batch, referenceInputs(made));
      expect(worstError(test.readF32(out), want.o, tolerance)).toBeLessThan(1);
    }
    expect(keys.size).toBe(4);
    attention.release();
  });
});

describe("mlaAbsorbThreshold", () => {
  it("is DeepSeek-V2's at the lengths of the published comparison", () => {
    const thresholds = [128, 512, 1000, 4096, 10000, 65536].map((kvLen) =>
      mlaAbsorbThreshold({ ...deepSeek, numHeads: 128 }, kvLen),
    );
    expect(thresholds).toEqual([74, 129, 146, 164, 168, 171]);
  });
});

const finite = (value: number): number => (value === -Infinity ? -1e9 : value);
