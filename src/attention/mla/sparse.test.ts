import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import { decodeFp8Tokens, encodeFp8Tokens, fp8TokenLayout, SparseMla, sparseMlaReference } from "./index.ts";

const tolerance = { relative: 1e-5, absolute: 1e-5 };
const dims = { numHeads: 5, kvLoraRank: 128, qkRopeHeadDim: 16, smScale: 0.08 };
const width = 144;
const numSlots = 40;

/** Lists with holes, repeats, slots past the end, one without any token, and one that its length empties. */
const indices = Int32Array.of(3, -1, 39, 7, 7, -1, -1, -1, -1, -1, 40, 2147480000, 5, 12, -1, 1, 2, 3, 4, 6);
const topkLengths = Int32Array.of(5, 5, 4, 0);

describe.each(Object.entries(testDevices))("sparse latent attention on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  const q = normals(4 * dims.numHeads * width, 1);
  const rows = normals(numSlots * width, 2);
  const listed = new Set([3, 39, 7, 5, 12]);
  const planted = rows.map((value, i) => (listed.has(Math.floor(i / width)) ? value : NaN));
  const valid = indices.map((slot) => (slot < numSlots ? slot : -1));

  it("equals the reference, and reads no token that is not listed", async () => {
    for (const sinks of [undefined, normals(dims.numHeads, 3)]) {
      const attention = new SparseMla(test.device, { ...dims, sinks: sinks !== undefined, returnLse: true });
      const out = test.f32([4, 5, 128], new Float32Array(4 * 5 * 128).fill(NaN));
      const lse = test.f32([4, 5], new Float32Array(20).fill(NaN));
      attention.plan({ indices, topk: 5, topkLengths, numSlots });
      const tensors = { q: test.f32([4, 5, width], q), cache: { fused: test.f32([numSlots, 1, width], planted) } };
      const sinkTensor = sinks && test.f32([5], sinks);
      await test.run((recorder) => attention.record(recorder, { ...tensors, sinks: sinkTensor, out, lse }));
      const want = sparseMlaReference(dims, { q, kvCache: rows, indices: valid, topk: 5, lengths: topkLengths, sinks });
      expect(worstError(test.readF32(out), want.z, tolerance)).toBeLessThan(1);
      const got = test.readF32(lse);
      expect(worstError(got.subarray(0, 5), want.lse.subarray(0, 5), tolerance)).toBeLessThan(1);
      for (const row of [1, 3]) expect([...got.subarray(row * 5, row * 5 + 5)]).toEqual(new Array(5).fill(-Infinity));
      attention.release();
    }
  });

  it("reads FlashMLA's 8-bit rows", async () => {
    const bytes = encodeFp8Tokens(dims, rows);
    const { numBytes } = fp8TokenLayout(dims);
    const attention = new SparseMla(test.device, { ...dims, storage: "fp8Token", returnLse: true });
    attention.plan({ indices, topk: 5, numSlots });
    const out = test.f32([4, 5, 128], new Float32Array(4 * 5 * 128).fill(NaN));
    const lse = test.f32([4, 5], new Float32Array(20).fill(NaN));
    const tensors = {
      q: test.f32([4, 5, width], q),
      cache: { fused: test.bytes([numSlots, 1, numBytes], "u8", bytes) },
    };
    await test.run((recorder) => attention.record(recorder, { ...tensors, out, lse }));
    const want = sparseMlaReference(dims, { q, kvCache: decodeFp8Tokens(dims, bytes), indices: valid, topk: 5 });
    expect(worstError(test.readF32(out), want.z, tolerance)).toBeLessThan(1);
    attention.release();
  });

  it("names what is wrong in the lists", () => {
    const attention = new SparseMla(test.device, dims);
    const lists = { indices, topk: 5, numSlots };
    expect(() => attention.plan({ ...lists, topk: 3 })).toThrow("indices must have rows of topk = 3 entries, got 20");
    expect(() => attention.plan({ ...lists, indices: Int32Array.of(1, 2, -2, 3, 4) })).toThrow(
      "indices[2] must be a slot or -1, got -2",
    );
    expect(() => attention.plan({ ...lists, topkLengths: Int32Array.of(5, 6, 1, 1) })).toThrow(
      "topkLengths[1] must be from 0 to topk = 5, got 6",
    );
    expect(() => attention.plan({ ...lists, topkLengths: Int32Array.of(5) })).toThrow(
      "topkLengths must have at least 4 entries, got 1",
    );
    attention.release();
  });
});

describe("FlashMLA's 8-bit rows", () => {
  it("take 656 bytes for DeepSeek's 512 and 64 channels", () => {
    expect(fp8TokenLayout({ kvLoraRank: 512, qkRopeHeadDim: 64 })).toEqual({
      scalesAt: 512,
      ropeAt: 528,
      numBytes: 656,
    });
  });

  it("keep latents to e4m3's precision under power-of-two scales, and rope keys to bf16's", () => {
    const shape = { kvLoraRank: 256, qkRopeHeadDim: 4 };
    const values = normals(3 * 260, 4).map((value, i) => (i % 260 < 128 ? value * 1000 : value));
    const bytes = encodeFp8Tokens(shape, values);
    const decoded = decodeFp8Tokens(shape, bytes);
    for (let i = 0; i < values.length; i++) {
      const relative = i % 260 < 256 ? 2 ** -4 : 2 ** -8;
      expect(Math.abs(decoded[i] - values[i])).toBeLessThanOrEqual(relative * Math.abs(values[i]) + 0.01);
    }
    const scales = new Float32Array(bytes.slice(256, 264).buffer);
    expect([...scales].every((scale) => Number.isInteger(Math.log2(scale)))).toBe(true);
    expect(scales[0]).toBeGreaterThan(100 * scales[1]);
  });

  it("refuse what is no whole row, and channels that leave scales unaligned", () => {
    const shape = { kvLoraRank: 256, qkRopeHeadDim: 4 };
    expect(() => encodeFp8Tokens(shape, new Float32Array(259))).toThrow(
      "values must be whole rows of 260, got 259 elements",
    );
    expect(() => decodeFp8Tokens(shape, new Uint8Array(271))).toThrow(
      "bytes must be whole rows of 272, got 271 elements",
    );
    expect(() => fp8TokenLayout({ kvLoraRank: 6, qkRopeHeadDim: 4 })).toThrow(
      "kvLoraRank must be a multiple of 4 for 8-bit rows, got 6",
    );
    expect(() => fp8TokenLayout({ kvLoraRank: 8, qkRopeHeadDim: 3 })).toThrow(
      "qkRopeHeadDim must be even for 8-bit rows, got 3",
    );
  });
});
