import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { expectEqualsReference } from "../../../test/fixtures/attention/equalsReference.ts";
import {
  defaultSpec,
  type Lengths,
  onDevice,
  onReference,
  raggedCase,
} from "../../../test/fixtures/attention/ragged.ts";
import { type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import type { CpuDevice } from "../../devices/index.ts";
import type { GroupedStorage, PageStorage } from "./storage.ts";
import { decodeRows } from "./storageCodec.ts";

const grouped = (bits: GroupedStorage["bits"], groupSize: number): PageStorage => ({
  kind: "grouped",
  bits,
  groupSize,
});
const tiled = (tile: number): PageStorage => ({ kind: "tiled", tile });

const elements = ["f32", "f16", "bf16", "f8e4m3", "f8e5m2"] as const;
const scaled = [
  "i8",
  grouped(2, 0),
  grouped(3, 8),
  grouped(4, 16),
  grouped(8, 32),
  grouped(3, 0),
  tiled(8),
  tiled(16),
] as const;

const lengths: readonly Lengths[] = [
  { queryLen: 1, kvLen: 70 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 9, kvLen: 33 },
];

describe.each(Object.entries(testDevices))("attention equals the reference on a %s", (_name, create) => {
  let test: TestDevice;
  let device: CpuDevice;
  beforeAll(async () => {
    test = await create();
    device = test.device;
  });
  afterAll(() => test.close());

  const check = (changes: Parameters<typeof defaultSpec>[0]): Promise<void> =>
    expectEqualsReference(device, raggedCase(defaultSpec({ splitSize: 32, ...changes }), lengths, 1, 3), 100);

  describe.each([...elements, ...scaled])("for pages of %j", (storage) => {
    it.each([
      [16, 16],
      [40, 24],
      [10, 22],
      [3, 1],
      [129, 65],
    ])("with keys of %i and values of %i channels", (headDim, headDimV) => check({ storage, headDim, headDimV }));

    it("in pages of 3 tokens and in contiguous rows", async () => {
      for (const pageSize of [3, undefined]) await check({ storage, pageSize, headDim: 20 });
    });
  });

  it.each([
    ["f32", "f8e4m3"],
    ["i8", "f16"],
    [grouped(4, 8), grouped(2, 0)],
    ["bf16", "i8"],
    [tiled(8), "f32"],
    [grouped(3, 16), tiled(8)],
  ] as const)("for keys of %j and values of %j", (storage, valueStorage) =>
    check({ storage, valueStorage, headDim: 24, headDimV: 33, pageSize: 3 }),
  );

  it.each(["f16", "bf16", "f8e4m3", "f8e5m2"] as const)("for every value of %s pages", async (storage) => {
    // One key a sequence: out is the value itself, so each code shows what it was read as, infinities and NaN too.
    const numCodes = storage.startsWith("f8") ? 256 : 65536;
    const headDim = 256;
    const keys = Array.from({ length: numCodes / headDim }, () => ({ queryLen: 1, kvLen: 1 }));
    const spec = defaultSpec({ valueStorage: storage, headDim, numQHeads: 1, numKvHeads: 1, pageSize: undefined });
    const given = raggedCase(spec, keys);
    const codes = numCodes === 256 ? new Uint8Array(numCodes) : new Uint16Array(numCodes);
    for (let code = 0; code < numCodes; code++) codes[code] = code;
    const none = new Float32Array(0);
    const units = new (numCodes === 256 ? Uint8Array : Uint16Array)(given.vPages.length);
    for (const s of keys.keys()) {
      units.set(codes.subarray(s * headDim, (s + 1) * headDim), given.batch.blockTables[s] * headDim);
    }
    const stored = { k: { units: given.kPages, scales: none }, v: { units, scales: none } };
    const { out } = await onDevice(device, { ...given, stored });
    const expected = decodeRows(storage, { units: codes, scales: none }, headDim);
    expect(out.findIndex((value, code) => !Object.is(value, expected[code] + 0))).toBe(-1);
  });

  it("for codes and scales of any size", async () => {
    // Scales of 0 and zero points outside of the codes are no codec's choice, but a page may hold them.
    const spec = defaultSpec({ storage: grouped(4, 8), headDim: 24, numQHeads: 2, numKvHeads: 1, pageSize: undefined });
    const given = raggedCase(spec, [{ queryLen: 3, kvLen: 40 }]);
    const rows = given.kPages.length / 24;
    const units = Uint8Array.from({ length: rows * 12 }, (_, i) => (i * 37) & 255);
    const scales = Float32Array.from({ length: rows * 6 }, (_, i) => (i % 2 === 0 ? (i % 5) * 0.05 : (i % 7) * 5 - 10));
    const stored = { k: { units, scales }, v: { units: units.toReversed(), scales } };
    await expectEqualsReference(device, { ...given, stored });
    expect(onReference({ ...given, stored }).out.some((value) => Math.abs(value) > 1)).toBe(true);
  });
});
