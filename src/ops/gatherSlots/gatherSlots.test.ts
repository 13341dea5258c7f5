import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { decodeRows, encodeRows, type PageStorage, rowElements, rowScales } from "../attention/index.ts";
import { gatherSlots, recordGatherSlots } from "./index.ts";

describe("gatherSlots by its definition", () => {
  it("takes rows in the order of the slots", () => {
    expect([...gatherSlots([1, 2, 3, 4, 5, 6], 2, [2, 0])]).toEqual([5, 6, 1, 2]);
  });
});

const storages: readonly PageStorage[] = [
  "f32",
  "f16",
  "bf16",
  "f8e4m3",
  "f8e5m2",
  "i8",
  { kind: "tiled", tile: 16 },
  { kind: "grouped", bits: 4, groupSize: 8 },
];

describe.each(Object.entries(testDevices))("gatherSlots on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
    "reads rows of %s as the codec does, and writes no more",
    async (_words, storage) => {
      const [numPages, pageSize] = [4, 3];
      for (const channels of [40, 5, 33]) {
        const stored = encodeRows(storage, normals(numPages * pageSize * channels, channels), channels);
        const units = stored.units instanceof Uint16Array ? stored.units : new Uint8Array(stored.units.buffer);
        const pages = test.bytes([units.length], "u8", units);
        const scales = test.f32([stored.scales.length + 1], [...stored.scales, 0]);
        const slots = [11, 0, 4, 4, 7];
        const out = test.f32([slots.length, channels], new Float32Array(slots.length * channels + 3).fill(-77));
        const [row, scaleRow] = [rowElements(storage, channels), rowScales(storage, channels)];
        await test.run((recorder) =>
          recordGatherSlots(
            recorder,
            { channels, pageSize, storage },
            {
              pages: pages.pointer,
              strides: { page: pageSize * row, slot: row },
              scales: scales.pointer,
              scaleStrides: { page: pageSize * scaleRow, slot: scaleRow },
              slots: test.i32([slots.length], slots),
              out,
            },
          ),
        );
        const expected = Float32Array.of(
          ...gatherSlots(decodeRows(storage, stored, channels), channels, slots),
          -77,
          -77,
          -77,
        );
        expect(
          test
            .readF32(out)
            .map((value, i) => value - expected[i])
            .every((error) => Math.abs(error) < 1e-6),
        ).toBe(true);
      }
    },
  );

  it("names what is wrong", async () => {
    const spec = { channels: 4, pageSize: 2, storage: "f32" } as const;
    const out = test.f32([2, 4], new Float32Array(8));
    const slots = test.i32([2], [0, 1]);
    const args = { pages: out.pointer, strides: { page: 8, slot: 4 }, slots, out };
    const record = (changedSpec: object, changed: object) => () =>
      test.run((recorder) => recordGatherSlots(recorder, { ...spec, ...changedSpec }, { ...args, ...changed }));
    await expect(record({ pageSize: 0 }, {})).rejects.toThrow("pageSize must be a whole number of at least 1, got 0");
    await expect(record({}, { slots: out })).rejects.toThrow("slots must be of type i32, got f32");
    await expect(record({}, { numRows: 3 })).rejects.toThrow("slots must have at least 3 entries, got shape [2]");
    await expect(record({ storage: "i8" }, {})).rejects.toThrow(
      'scales and scaleStrides must be given for storage "i8"',
    );
    await expect(record({ channels: 5 }, {})).rejects.toThrow("out must have rows of 5 elements, got shape [2, 4]");
  });
});
