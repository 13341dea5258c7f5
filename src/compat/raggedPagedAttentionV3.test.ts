import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { complexSequences, sequenceLists } from "../../test/fixtures/attention/sequenceLists.ts";
import { expectEquals, expectStep, hd64, makeStep, shapeOf, taken, v3 } from "../../test/fixtures/compat/raggedV3.ts";
import { TestDevice } from "../../test/ops/testDevice.ts";
import { bf16FromF32, f16FromF32 } from "../tensor/index.ts";
import type { RaggedPagedAttentionV3Options } from "./raggedPagedAttentionV3.ts";

let test: TestDevice;
beforeAll(async () => {
  test = await TestDevice.create({ threads: 2 });
});
afterEach(() => test.clear());
afterAll(() => test.close());

describe("ragged paged attention, version 3", () => {
  it.each(Object.entries(sequenceLists))("writes the cache and equals the reference: %s", (_name, lengths) =>
    expectEquals(test, shapeOf([2, 1], 8), lengths.slice(0, 9), { smScale: 0.35 }),
  );

  it.each([
    [[12, 2], 80, 1],
    [[5, 1], 240, 2],
    [[3, 3], 128, 4],
  ] as const)("of %j heads of %i channels, packed by %i", (heads, headDim, pack) =>
    expectEquals(test, shapeOf(heads, headDim, { pack }), complexSequences(5), { smScale: 0.1 }),
  );

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("rounds to a cache of %s", (storage) =>
    expectEquals(test, shapeOf([4, 2], 24, { storage, pack: 2 }), complexSequences(3), {
      smScale: 0.2,
      qScale: 0.5,
      kScale: 0.7,
      vScale: 1.5,
    }),
  );

  it.each<RaggedPagedAttentionV3Options>([
    { slidingWindow: 5, softCap: 3 },
    { slidingWindow: 128, maskValue: -1e9 },
    { useCausalMask: false },
    { useCausalMask: false, skipKvMask: true, softCap: 50 },
    { qScale: 0.5 },
    { chunkPrefillSize: 8, dBlockSizes: [1, 64, 1, 32], vmemLimitBytes: 1, maskValue: -Infinity },
  ])("with %o", (options) =>
    expectEquals(test, shapeOf([4, 2], 16), complexSequences(4), { smScale: 0.25, ...options }),
  );

  it("scales logits by 1 unless told otherwise", () =>
    expectEquals(test, shapeOf([2, 2], 4), [{ queryLen: 3, kvLen: 20 }]));

  it("reads another layer's cache and leaves it as it is, whatever the keys", async () => {
    const step = makeStep(test, shapeOf([4, 2], 16), complexSequences(4));
    const options = { smScale: 0.25 };
    const writer = step.upload();
    const first = taken(test, (await v3(test, writer, options)).out);
    const nothing = test.f32(writer.keys.shape, new Float32Array(step.numRows * 2 * 16).fill(Number.NaN));
    const shared = await v3(test, { ...writer, keys: nothing, values: nothing }, { ...options, updateKvCache: false });
    expect(taken(test, shared.out)).toEqual(first);
    expectStep(test, step, first, step.reference(options, step.after), writer.kvCache);
  });

  it.each([false, true])("keeps keys and values of 64 channels in one row, sinks: %s", async (hasSinks) => {
    const slot = [4, 1, 128] as const;
    const shape = shapeOf([8, 4], 64, { slot, headStride: 128, valueOffset: 64, storage: "bf16" });
    const step = makeStep(test, shape, complexSequences(5));
    const args = step.upload();
    const sinks = Float32Array.of(1, -1, 0, 3, 2, -2, 0.5, 5);
    const options = { smScale: 0.125, slidingWindow: 40 };
    const { out, kvCache } = await hd64(test, args, hasSinks ? test.f32([8], sinks) : undefined, options);
    expectStep(
      test,
      step,
      taken(test, out),
      step.reference(options, step.after, hasSinks ? sinks : undefined),
      kvCache,
    );
  });

  it.each([
    ["f16", f16FromF32],
    ["bf16", bf16FromF32],
  ] as const)("returns %s", async (outDtype, convert) => {
    const step = makeStep(test, shapeOf([2, 1], 8), [{ queryLen: 3, kvLen: 20 }]);
    const args = step.upload();
    const expected = convert(taken(test, (await v3(test, args)).out));
    const { usedBytes } = test.device.stats();
    const { out } = await v3(test, args, { outDtype });
    expect(out).toMatchObject({ type: outDtype, shape: args.queries.shape });
    expect(test.device.u16At(out.pointer, expected.length).slice()).toEqual(expected);
    if (out.buffer) test.device.free(out.buffer);
    expect(test.device.stats().usedBytes).toBe(usedBytes);
    const given = test.bytes(args.queries.shape, outDtype, new Uint16Array(expected.length));
    expect((await v3(test, args, { outDtype, out: given })).out).toBe(given);
    expect(new Uint16Array(test.readBytes(given).buffer)).toEqual(expected);
  });
});
