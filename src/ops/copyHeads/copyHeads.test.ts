import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { copyHeads, recordCopyHeads } from "./index.ts";

describe("copyHeads by its definition", () => {
  it("scales, and gives one vector to every head", () => {
    expect([...copyHeads([1, 2, 3, 4], 2, 2, { factor: 2 })]).toEqual([2, 4, 6, 8]);
    expect([...copyHeads([1, 2, 3, 4], 2, 2, { broadcast: true })]).toEqual([1, 2, 1, 2, 3, 4, 3, 4]);
  });
});

describe.each(Object.entries(testDevices))("copyHeads on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each([1, 4, 7, 64])("puts %i channels behind others, and writes no more", async (channels) => {
    const [tokens, heads, before] = [9, 3, 5];
    const values = normals(tokens * heads * channels, channels);
    const x = test.f32([tokens, heads, channels], values);
    const width = before + channels;
    const out = test.f32([tokens, heads, channels], new Float32Array(tokens * heads * width).fill(-77));
    const target = { ...out, pointer: out.pointer + before * 4, headStride: width, rowStride: heads * width };
    await test.run((recorder) => recordCopyHeads(recorder, { channels }, { x, out: target, factor: 0.5 }));
    const copied = copyHeads(values, channels, heads, { factor: 0.5 });
    const expected = Float64Array.from({ length: tokens * heads * width }, (_, i) =>
      i % width < before ? -77 : copied[Math.floor(i / width) * channels + (i % width) - before],
    );
    expect(Float64Array.from(test.readF32(out))).toEqual(expected);
  });

  it("gives one vector to every head", async () => {
    const [tokens, heads, channels] = [4, 5, 6];
    const values = normals(tokens * channels, 1);
    const x = { ...test.f32([tokens, heads, channels], values), headStride: 0 };
    const out = test.f32([tokens, heads, channels], new Float32Array(tokens * heads * channels));
    await test.run((recorder) => recordCopyHeads(recorder, { channels }, { x, out }));
    expect(Float64Array.from(test.readF32(out))).toEqual(copyHeads(values, channels, heads, { broadcast: true }));
  });

  it("names what is wrong", async () => {
    const x = test.f32([2, 3, 4], new Float32Array(24));
    const record = (channels: number, changed: object) => () =>
      test.run((recorder) => recordCopyHeads(recorder, { channels }, { x, out: x, ...changed }));
    await expect(record(0, {})).rejects.toThrow("channels must be a whole number of at least 1, got 0");
    await expect(record(5, {})).rejects.toThrow("x must have shape [at least 2, 3, 5], got [2, 3, 4]");
    await expect(record(4, { factor: NaN })).rejects.toThrow("factor must be a finite number, got NaN");
  });
});
