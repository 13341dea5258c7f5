import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { packed, randomWeights } from "../../../test/matmul/weights.ts";
import { bitsOf, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { dequantize, weightTypes } from "../../tensor/index.ts";
import { embedding, recordEmbedding } from "./index.ts";

const [vocabulary, dim] = [43, 256];
const tokenIds = [0, 42, 7, 7, 3, 40, 41, 1];

describe("embedding by its definition", () => {
  it("takes rows of the table, times the scale", () => {
    expect([...embedding([1, 2, 3, 4, 5, 6], 2, [2, 0], 10)]).toEqual([50, 60, 10, 20]);
  });
});

describe.each(Object.entries(testDevices))("embedding on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  // Expansion does the float32 operations of the definition in its order, so nothing is lost but one rounding for the scale.
  it.each(weightTypes)("equals the reference bit for bit for a table of %s", async (type) => {
    const bytes = randomWeights(type, vocabulary * dim, 1);
    const table = await packed(test, { type, rows: vocabulary, columns: dim, precision: "f32", bytes });
    const ids = test.i32([tokenIds.length], tokenIds);
    const out = test.f32([tokenIds.length, dim], new Float32Array(tokenIds.length * dim));
    for (const scale of [1, Math.fround(Math.sqrt(dim) * 0.7)]) {
      await test.run((recorder) => {
        const args = { table, tokenIds: ids.pointer, out: out.pointer, numTokens: tokenIds.length, scale };
        recordEmbedding(recorder, args);
      });
      const expected = embedding(dequantize(type, bytes, vocabulary * dim), dim, tokenIds, scale);
      expect(bitsOf(test.readF32(out))).toEqual(bitsOf(Float32Array.from(expected)));
    }
  });

  it("takes tables of odd widths, and no tokens", async () => {
    const bytes = randomWeights("F16", 5 * 7, 2);
    const table = await packed(test, { type: "F16", rows: 5, columns: 7, precision: "f32", bytes });
    const ids = test.i32([2], [4, 1]);
    const out = test.f32([15], new Float32Array(15).fill(-77));
    const args = { table, tokenIds: ids.pointer, out: out.pointer };
    await test.run((recorder) => recordEmbedding(recorder, { ...args, numTokens: 0 }));
    expect(test.readF32(out)).toEqual(new Float32Array(15).fill(-77));
    await test.run((recorder) => recordEmbedding(recorder, { ...args, numTokens: 2 }));
    const expected = [...embedding(dequantize("F16", bytes, 35), 7, [4, 1]), -77];
    expect(test.readF32(out)).toEqual(Float32Array.from(expected));
  });

  it("names what is wrong", async () => {
    const bytes = randomWeights("F32", 8, 3);
    const table = await packed(test, { type: "F32", rows: 2, columns: 4, precision: "f32", bytes });
    const args = { table, tokenIds: 64, out: 64, numTokens: 1 };
    await test.run((recorder) => {
      expect(() => recordEmbedding(recorder, { ...args, numTokens: -1 })).toThrow("numTokens must be a whole number");
      expect(() => recordEmbedding(recorder, { ...args, scale: NaN })).toThrow("scale must be finite, got NaN");
      expect(() => recordEmbedding(recorder, { ...args, tokenIds: 0 })).toThrow("tokenIds must be an address, got 0");
      expect(() => recordEmbedding(recorder, { ...args, out: 0 })).toThrow("out must be an address, got 0");
    });
  });
});
