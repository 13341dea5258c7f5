/** The append in every storage type: bit for bit what the host's codec makes of the rows, and nothing beside them. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  difference,
  layouts,
  makePool,
  movedTo,
  type PoolShape,
  randomBytes,
  storages,
} from "../../../test/ops/storedPages.ts";
import { normals, type TestDevice, testDevices } from "../../../test/ops/testDevice.ts";
import { type PageStorage, rowElements, rowScales } from "../attention/storage.ts";
import { decodeRows, type EncodeOptions } from "../attention/storageCodec.ts";
import { type AppendKvSpec, appendRows, recordAppendKv } from "./index.ts";

const numPages = 5;
const pageSize = 4;

/** Normal numbers, with everything in between that is finite: zeros, ties, subnormals of each type, numbers that saturate. */
function someNumbers(length: number, seed: number): Float32Array {
  const numbers = normals(length, seed);
  const odd = [0, -0, 1 + 2 ** -11, 2 ** -25, 1e-40, 500, -1e5, 6.1e4, 3e38, -3.4e38, 1 / 3, 0.5, 2.5, -127.5];
  odd.forEach((x, i) => {
    if (i % 3 === seed % 3) numbers[(i * 29 + seed) % length] = x;
  });
  return numbers;
}

describe.each(Object.entries(testDevices))("appendKv on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  /** Appends rows with the kernel and with the definition, on equal random memory, compares all of it, and returns it. */
  async function compare(
    shape: Omit<PoolShape, "numPages" | "pageSize">,
    slots: readonly number[],
    keys: Float32Array,
    values: Float32Array,
    options: { readonly encoding?: EncodeOptions; readonly kScale?: number; readonly vScale?: number } = {},
  ): Promise<Uint8Array> {
    const { storage, numHeads, channels } = shape;
    const { encoding, ...scales } = options;
    const pool = makePool({ ...shape, numPages, pageSize });
    const memory = randomBytes(pool.numBytes, channels);
    const device = test.bytes([memory.length], "u8", memory);
    const spec: AppendKvSpec = { numKvHeads: numHeads, headDim: channels, storage, encoding };
    await test.run((recorder) =>
      recordAppendKv(recorder, spec, {
        k: test.f32([slots.length, numHeads, channels], keys),
        v: test.f32([slots.length, numHeads, channels], values),
        kPages: movedTo(device.pointer, pool.k),
        vPages: movedTo(device.pointer, pool.v),
        slotMapping: test.i32([slots.length], slots),
        ...scales,
      }),
    );
    const rows = { storage, numHeads, channels, encoding };
    appendRows(memory, { ...rows, values: keys, divisor: scales.kScale }, slots, pool.k);
    appendRows(memory, { ...rows, values, divisor: scales.vScale }, slots, pool.v);
    expect(difference(test.readBytes(device), memory)).toBeUndefined();
    return memory;
  }

  const slots = [7, -1, 0, 19, 3, 12, 4];
  describe.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))("as %s", (_, storage) => {
    it.each(layouts)("writes the codec's bits with %s", async (layout) => {
      for (const [numHeads, channels] of [
        [2, 64],
        [1, 13],
        [3, 40],
        [1, 100],
      ]) {
        const length = slots.length * numHeads * channels;
        await compare(
          { storage, layout, numHeads, channels },
          slots,
          someNumbers(length, channels),
          someNumbers(length, 7 * channels),
        );
      }
    });

    it("divides by the scales of keys and values first", async () => {
      const [numHeads, channels] = [2, 20];
      const length = slots.length * numHeads * channels;
      await compare(
        { storage, layout: "slots first", numHeads, channels },
        slots,
        someNumbers(length, 1),
        someNumbers(length, 2),
        { kScale: 0.3, vScale: 7.1 },
      );
    });
  });

  const encodings = (["withZero", "values", "symmetric"] as const).flatMap((range) =>
    [1, 0.9, 0.3].map((clipRatio): EncodeOptions => ({ range, clipRatio })),
  );
  it.each(encodings)("chooses the scale of groups with %o", async (encoding) => {
    for (const bits of [2, 3, 4, 8] as const) {
      const storage: PageStorage = { kind: "grouped", bits, groupSize: 16 };
      const length = slots.length * 2 * 40;
      const shape = { storage, layout: "slots first", numHeads: 2, channels: 40 } as const;
      // Values are all on one side of 0, keys on both.
      const values = normals(length, 2).map((x) => 5 + x);
      await compare(shape, slots, normals(length, 1), values, { encoding });
    }
  });

  it.each([2, 3, 4, 8] as const)("keeps each number to half a step in groups of %i bits", async (bits) => {
    const storage: PageStorage = { kind: "grouped", bits, groupSize: 16 };
    const channels = 40;
    const slots = Array.from({ length: numPages * pageSize }, (_, slot) => slot);
    const shape = { storage, layout: "slots first", numHeads: 1, channels } as const;
    for (const seed of [1, 2, 3]) {
      // Groups around 0, on one side of it, far from it, and of equal numbers.
      const rows = normals(slots.length * channels, seed).map((x, i) => {
        const [center, spread] = [
          [0, 1],
          [3, 1],
          [-100, 0.5],
          [0.25, 0],
          [0, 0],
          [1e-7, 1e-8],
          [40, 30],
        ][(Math.floor(i / 8) * seed) % 7];
        return center + x * spread;
      });
      const memory = await compare(shape, slots, rows, rows);
      const { scales } = makePool({ ...shape, numPages, pageSize }).k;
      const kept = decodePages(storage, memory, scales?.pointer, slots.length, channels);
      const scaleOf = new Float32Array(memory.buffer, scales?.pointer);
      for (const [i, x] of rows.entries()) {
        const group = 3 * Math.floor(i / channels) + Math.floor((i % channels) / 16);
        expect(Math.abs(kept[i] - x)).toBeLessThanOrEqual(0.501 * scaleOf[2 * group]);
      }
      for (let first = 0; first < rows.length; first += channels) {
        for (const [begin, end] of [
          [0, 16],
          [16, 32],
          [32, 40],
        ]) {
          const own = rows.subarray(first + begin, first + end);
          const range = Math.max(0, ...own) - Math.min(0, ...own);
          const scale = scaleOf[2 * (3 * (first / channels) + begin / 16)];
          expect(scale * (2 ** bits - 1)).toBeLessThanOrEqual(range * (1 + 2 ** -22) + 2 ** -99);
        }
      }
    }
  });

  it.each(storages.map((storage) => [JSON.stringify(storage), storage] as const))(
    "keeps rows of one number as %s",
    async (_, storage) => {
      const channels = 24;
      // The last two lie on both sides of a power of two as the scale of a tile.
      const constants = [0, 0.25, -3, 1e-30, 500, -1e-7, 2, 448, 448 + 2 ** -15];
      const rows = Float32Array.from(
        { length: constants.length * channels },
        (_, i) => constants[Math.floor(i / channels)],
      );
      const slots = constants.map((_, i) => 2 * i);
      const shape = { storage, layout: "slots first", numHeads: 1, channels } as const;
      const memory = await compare(shape, slots, rows, rows);
      if (typeof storage === "string" || storage.kind === "tiled") return;
      const { scales } = makePool({ ...shape, numPages, pageSize }).k;
      const kept = decodePages(storage, memory, scales?.pointer, numPages * pageSize, channels);
      for (const [i, x] of rows.entries()) {
        const slot = slots[Math.floor(i / channels)];
        expect(Math.abs(kept[slot * channels + (i % channels)] - x)).toBeLessThanOrEqual(2 ** -22 * Math.abs(x));
      }
    },
  );

  it("lets no NaN and no infinity pass for a number", async () => {
    const channels = 40;
    for (const storage of storages) {
      const rows = normals(4 * channels, 5);
      rows[3] = Number.NaN;
      rows[channels + 39] = Number.NaN;
      rows[2 * channels + 17] = Infinity;
      rows[3 * channels] = -Infinity;
      const pool = makePool({ storage, layout: "slots first", numPages: 1, pageSize: 4, numHeads: 1, channels });
      const device = test.bytes([pool.numBytes], "u8", new Uint8Array(pool.numBytes));
      const x = test.f32([4, channels], rows);
      await test.run((recorder) =>
        recordAppendKv(
          recorder,
          { numKvHeads: 1, headDim: channels, storage },
          {
            k: x,
            v: x,
            kPages: movedTo(device.pointer, pool.k),
            vPages: movedTo(device.pointer, pool.v),
            slotMapping: test.i32([4], [0, 1, 2, 3]),
          },
        ),
      );
      const memory = new Uint8Array(pool.numBytes);
      appendRows(memory, { storage, numHeads: 1, channels, values: rows }, [0, 1, 2, 3], pool.k);
      const numbers = (bytes: Uint8Array): Float32Array =>
        decodePages(storage, bytes, pool.k.scales?.pointer, 4, channels);
      expect(difference(numbers(test.readBytes(device)), numbers(memory)), JSON.stringify(storage)).toBeUndefined();
      const kept = numbers(memory);
      expect([kept[3], kept[channels + 39]]).toEqual([Number.NaN, Number.NaN]);
    }
  });
});

/** The numbers of dense rows at the beginning of `memory`. */
function decodePages(
  storage: PageStorage,
  memory: Uint8Array,
  scalesAt: number | undefined,
  numRows: number,
  channels: number,
): Float32Array {
  const length = numRows * rowElements(storage, channels);
  const scales = new Float32Array(
    memory.buffer,
    scalesAt ?? 0,
    scalesAt === undefined ? 0 : numRows * rowScales(storage, channels),
  );
  const units =
    storage === "f32"
      ? new Float32Array(memory.buffer, 0, length)
      : storage === "f16" || storage === "bf16"
        ? new Uint16Array(memory.buffer, 0, length)
        : storage === "i8"
          ? new Int8Array(memory.buffer, 0, length)
          : new Uint8Array(memory.buffer, 0, length);
  return decodeRows(storage, { units, scales }, channels);
}
