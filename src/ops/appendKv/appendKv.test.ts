import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { bitsOf, normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { f32ToF16 } from "../../tensor/index.ts";
import {
  type AppendKvArgs,
  type AppendKvSpec,
  appendKv,
  checkSlotMapping,
  recordAppendKv,
  storedValue,
} from "./index.ts";

const specs: readonly AppendKvSpec[] = [
  { numKvHeads: 1, headDim: 8, storage: "f32" },
  { numKvHeads: 2, headDim: 20, storage: "f32" },
  { numKvHeads: 3, headDim: 7, storage: "f32" },
  { numKvHeads: 1, headDim: 8, storage: "f16" },
  { numKvHeads: 4, headDim: 64, storage: "f16" },
  { numKvHeads: 3, headDim: 13, storage: "f16" },
];

/** Every kind of f32 there is: of both signs, tiny, subnormal as f16, at ties, past the largest f16, infinite. */
const extremes = Float32Array.from(
  [
    0,
    1e-40,
    2 ** -26,
    2 ** -25,
    2 ** -24,
    1.5 * 2 ** -24,
    6.1e-5,
    1 + 2 ** -11,
    1 + 3 * 2 ** -11,
    65504,
    65519,
    65520,
    1e6,
    3e38,
    Infinity,
  ].flatMap((x) => [x, -x]),
);

/** The pages as the device must hold them: f32 bits or f16 codes. */
function encode(storage: AppendKvSpec["storage"], pages: Float32Array): Uint8Array {
  if (storage === "f32") return new Uint8Array(pages.buffer);
  return new Uint8Array(Uint16Array.from(pages, (x) => f32ToF16(x)).buffer);
}

describe("appendKv by its definition", () => {
  it("scatters rows by slot and skips -1", () => {
    const pages = new Float32Array(8);
    appendKv({ numKvHeads: 1, headDim: 2, storage: "f32" }, [1, 2, 3, 4, 5, 6], [3, -1, 0], pages);
    expect([...pages]).toEqual([5, 6, 0, 0, 0, 0, 1, 2]);
  });

  it("rounds f16 to nearest, ties to even, and saturates", () => {
    const stored = (x: number): number => storedValue("f16", x);
    expect(stored(1 + 2 ** -11)).toBe(1);
    expect(stored(1 + 3 * 2 ** -11)).toBe(1 + 2 ** -9);
    expect(stored(65519)).toBe(65504);
    expect(stored(1e6)).toBe(65504);
    expect(stored(-Infinity)).toBe(-65504);
    expect(stored(Number.NaN)).toBeNaN();
    expect(stored(2 ** -25)).toBe(0);
  });
});

describe.each(Object.entries(testDevices))("appendKv on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each(specs)("leaves the bits of the reference with $numKvHeads x $headDim $storage", async (spec) => {
    const { storage } = spec;
    const length = spec.numKvHeads * spec.headDim;
    const [numTokens, numSlots] = [23, 64];
    // 23 different slots in an order of their own, three of them skipped.
    const slots = Int32Array.from({ length: numTokens }, (_, i) => (i % 9 === 4 ? -1 : (i * 37 + 5) % numSlots));
    const [kValues, vValues] = [1, 2].map((seed) => {
      const values = normals(numTokens * length, seed);
      extremes.forEach((x, i) => {
        values[(i * 11 + seed) % values.length] = x;
      });
      return values;
    });
    const [kBefore, vBefore] = [3, 4].map((seed) => normals(numSlots * length, seed));
    const pages = (values: Float32Array) => ({
      ...test.bytes([numSlots], "u8", encode(storage, values)),
      type: storage,
      numSlots,
    });
    const [kPages, vPages] = [pages(kBefore), pages(vBefore)];
    await test.run((recorder) =>
      recordAppendKv(recorder, spec, {
        k: test.f32([numTokens, spec.numKvHeads, spec.headDim], kValues),
        v: test.f32([numTokens, length], vValues),
        kPages,
        vPages,
        slotMapping: test.i32([numTokens], slots),
      }),
    );
    appendKv(spec, kValues, slots, kBefore);
    appendKv(spec, vValues, slots, vBefore);
    expect(test.readBytes({ ...kPages, shape: [], type: "u8" })).toEqual(encode(storage, kBefore));
    expect(test.readBytes({ ...vPages, shape: [], type: "u8" })).toEqual(encode(storage, vBefore));
  });

  it("keeps every bit of an f32, also of a NaN, and makes an f16 NaN of a NaN", async () => {
    const bits = Uint32Array.of(0x7fc00001, 0xff800001, 0x80000000, 0x00000001, 0x7f800000, 1, 2, 3, 4);
    const x = test.bytes([1, 9], "f32", new Uint8Array(bits.buffer));
    const slotMapping = test.i32([1], [0]);
    const full = { ...test.f32([1, 9], new Float32Array(9)), type: "f32" as const, numSlots: 1 };
    const half = { ...test.bytes([18], "u8", new Uint8Array(18)), type: "f16" as const, numSlots: 1 };
    await test.run((recorder) => {
      const args = { k: x, v: x, slotMapping };
      recordAppendKv(recorder, { numKvHeads: 1, headDim: 9, storage: "f32" }, { ...args, kPages: full, vPages: full });
      recordAppendKv(recorder, { numKvHeads: 1, headDim: 9, storage: "f16" }, { ...args, kPages: half, vPages: half });
    });
    expect(bitsOf(test.readF32(full))).toEqual(bits);
    const halves = new Uint16Array(test.readBytes({ ...half, type: "u8" }).buffer);
    expect([...halves.subarray(0, 5)].map((code) => (code & 0x7fff) > 0x7c00)).toEqual([
      true,
      true,
      false,
      false,
      false,
    ]);
    expect([...halves.subarray(2, 5)]).toEqual([0x8000, 0, 0x7bff]);
  });

  it("writes pages with keys and values in turn", async () => {
    const [numTokens, numSlots, numKvHeads, headDim] = [5, 8, 3, 8];
    const spec: AppendKvSpec = { numKvHeads, headDim, storage: "f32" };
    const [kValues, vValues] = [1, 2].map((seed) => normals(numTokens * numKvHeads * headDim, seed));
    const slots = [6, 0, 3, -1, 7];
    const combined = test.f32(
      [numSlots, 2 * numKvHeads, headDim],
      new Float32Array(numSlots * 2 * numKvHeads * headDim),
    );
    const kPages = {
      pointer: combined.pointer,
      type: "f32" as const,
      numSlots,
      slotStride: 2 * numKvHeads * headDim,
      headStride: 2 * headDim,
    };
    await test.run((recorder) =>
      recordAppendKv(recorder, spec, {
        k: test.f32([numTokens, numKvHeads, headDim], kValues),
        v: test.f32([numTokens, numKvHeads, headDim], vValues),
        kPages,
        vPages: { ...kPages, pointer: kPages.pointer + headDim * 4 },
        slotMapping: test.i32([numTokens], slots),
      }),
    );
    const expected = new Float32Array(numSlots * 2 * numKvHeads * headDim);
    slots.forEach((slot, token) => {
      if (slot === -1) return;
      for (let head = 0; head < numKvHeads; head++) {
        const source = (token * numKvHeads + head) * headDim;
        const target = (slot * 2 * numKvHeads + 2 * head) * headDim;
        expected.set(kValues.subarray(source, source + headDim), target);
        expected.set(vValues.subarray(source, source + headDim), target + headDim);
      }
    });
    expect(test.readF32(combined)).toEqual(expected);
  });

  it("writes nothing for a slot that is none", async () => {
    const x = test.f32([3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    const pages = { ...test.f32([4, 4], new Float32Array(16)), type: "f32" as const, numSlots: 2 };
    await test.run((recorder) =>
      recordAppendKv(
        recorder,
        { numKvHeads: 1, headDim: 4, storage: "f32" },
        { k: x, v: x, kPages: pages, vPages: pages, slotMapping: test.i32([3], [2, -7, 2147480000]) },
      ),
    );
    expect(test.readF32(pages)).toEqual(new Float32Array(16));
  });

  it("names what is wrong", async () => {
    const spec: AppendKvSpec = { numKvHeads: 2, headDim: 4, storage: "f32" };
    const x = test.f32([3, 8], new Float32Array(24));
    const pages = { pointer: x.pointer, type: "f32" as const, numSlots: 3 };
    const args: AppendKvArgs = { k: x, v: x, kPages: pages, vPages: pages, slotMapping: test.i32([3], [0, 1, 2]) };
    const record =
      (changed: object, changedSpec: object = {}) =>
      () =>
        test.run((recorder) => recordAppendKv(recorder, { ...spec, ...changedSpec }, { ...args, ...changed }));
    await expect(record({ k: { ...x, shape: [3, 7] } })).rejects.toThrow(
      "k must have rows of 8 elements, got shape [3, 7]",
    );
    await expect(record({ v: { ...x, shape: [2, 8] } })).rejects.toThrow(
      "v must have at least 3 rows, got shape [2, 8]",
    );
    await expect(record({ slotMapping: { ...args.slotMapping, shape: [2] } })).rejects.toThrow(
      "slotMapping must have at least 3 entries",
    );
    await expect(record({ slotMapping: x })).rejects.toThrow("slotMapping must be of type i32, got f32");
    await expect(record({}, { storage: "f16" })).rejects.toThrow("kPages must be of type f16, got f32");
    await expect(record({ vPages: { ...pages, slotStride: 7 } })).rejects.toThrow(
      "vPages.slotStride must be at least 8",
    );
    await expect(record({ kPages: { ...pages, headStride: 3 } })).rejects.toThrow(
      "kPages.headStride must be at least 4, the units that it steps over, got 3",
    );
    await expect(record({ vPages: { ...pages, numSlots: 4 } })).rejects.toThrow(
      "vPages.numSlots must be that of kPages, 3, got 4",
    );
    await expect(record({ kPages: { ...pages, pageSize: 2 } })).rejects.toThrow(
      "kPages.numSlots must be a multiple of pageSize = 2, got 3",
    );
    await expect(record({ kPages: { ...pages, pointer: x.pointer + 2 } })).rejects.toThrow(
      `kPages.pointer must be a multiple of 4, got ${x.pointer + 2}`,
    );
    const scales = { pointer: x.pointer };
    await expect(record({ kPages: { ...pages, scales } })).rejects.toThrow(
      "kPages.scales must be absent: f32 has none",
    );
    const codes = { ...pages, type: "i8" as const };
    await expect(record({ kPages: codes, vPages: codes }, { storage: "i8" })).rejects.toThrow(
      "kPages.scales must be given: i8 has 1 for each row",
    );
    await expect(record({ kScale: 0 })).rejects.toThrow("kScale must be a positive number, got 0");
    await expect(record({ vScale: Number.NaN })).rejects.toThrow("vScale must be a positive number, got NaN");
  });
});

it("finds the slot that is none on the host", () => {
  expect(() => checkSlotMapping([0, -1, 3, 99], 3, 4)).not.toThrow();
  expect(() => checkSlotMapping([0, 1, 2, 4096], 4, 1024)).toThrow(
    "slotMapping[3] = 4096 is not a slot: the pool has 1024",
  );
  expect(() => checkSlotMapping([-2], 1, 4)).toThrow("slotMapping[0] = -2 is not a slot");
  expect(() => checkSlotMapping([3, -1, -1, 0, 3], 5, 4)).toThrow("slotMapping[4] = 3 is the slot of token 0 too");
});
