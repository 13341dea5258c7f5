import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../tensor/index.ts";
import { type GroupedStorage, type PageStorage, rowElements, rowScales } from "./storage.ts";
import { decodeRows, encodeRows } from "./storageCodec.ts";

const grouped = (bits: 2 | 3 | 4 | 8, groupSize: number): GroupedStorage => ({ kind: "grouped", bits, groupSize });
const tiled = (tile: number): PageStorage => ({ kind: "tiled", tile });

const numbers = fc.array(fc.float({ min: -100, max: 100, noNaN: true, noDefaultInfinity: true }), {
  minLength: 90,
  maxLength: 90,
});
const channelCounts = fc.integer({ min: 1, max: 45 });

/** `check` gets every row with what it came back as; the shapes are checked here. */
function forRows(
  storage: PageStorage,
  check: (row: Float32Array, decoded: Float32Array, scales: Float32Array) => void,
  symmetric = false,
): void {
  fc.assert(
    fc.property(channelCounts, numbers, (channels, all) => {
      const rows = Math.floor(all.length / channels);
      const values = Float32Array.from(all.slice(0, rows * channels));
      const stored = encodeRows(storage, values, channels, { symmetric });
      const scalesPerRow = rowScales(storage, channels);
      expect(stored.units).toHaveLength(rows * rowElements(storage, channels));
      expect(stored.scales).toHaveLength(rows * scalesPerRow);
      const decoded = decodeRows(storage, stored, channels);
      for (let row = 0; row < rows; row++) {
        const of = (array: Float32Array, length: number) => array.subarray(row * length, (row + 1) * length);
        check(of(values, channels), of(decoded, channels), of(stored.scales, scalesPerRow));
      }
    }),
    { numRuns: 40, seed: 3 },
  );
}

describe("rows come back as the nearest number their storage has", () => {
  it.each([
    ["f32", 0],
    ["f16", 2 ** -11],
    ["bf16", 2 ** -8],
    ["f8e4m3", 2 ** -4],
    ["f8e5m2", 2 ** -3],
  ] as const)("%s, relative to each number", (storage, bound) =>
    forRows(storage, (row, decoded) => {
      const smallest = { f32: 0, f16: 2 ** -25, bf16: 2 ** -134, f8e4m3: 2 ** -10, f8e5m2: 2 ** -17 }[storage];
      row.forEach((x, d) => {
        expect(Math.abs(decoded[d] - x)).toBeLessThanOrEqual(Math.max(bound * Math.abs(x), smallest));
      });
    }),
  );

  it("i8, half a step or, at the largest, the saturated step", () =>
    forRows("i8", (row, decoded, [scale]) => {
      expect(scale).toBe(Math.max(...row.map(Math.abs)));
      // 127.5 / scale is infinite for a smaller scale, and all codes saturate.
      const overflow = scale < 4e-37 ? 2 * scale : 0;
      row.forEach((x, d) => {
        const wanted = Math.min(x, (127 / 127.5) * scale);
        expect(Math.abs(decoded[d] - wanted)).toBeLessThanOrEqual((0.501 / 127.5) * scale + overflow);
      });
    }));

  it.each([
    [2, 0, false],
    [3, 8, false],
    [3, 0, true],
    [4, 16, false],
    [4, 8, true],
    [8, 16, false],
  ] as const)("codes of %i bits in groups of %i, symmetric %s", (bits, groupSize, symmetric) =>
    forRows(
      grouped(bits, groupSize),
      (row, decoded, scales) =>
        row.forEach((x, d) => {
          const group = groupSize === 0 ? 0 : Math.floor(d / groupSize);
          const [scale, zero] = scales.subarray(2 * group, 2 * group + 2);
          expect(symmetric ? zero : zero - Math.round(zero)).toBe(symmetric ? 2 ** (bits - 1) : 0);
          const nearest = Math.min(Math.max(x, -zero * scale), (2 ** bits - 1 - zero) * scale);
          expect(Math.abs(decoded[d] - nearest)).toBeLessThanOrEqual(0.501 * scale);
        }),
      symmetric,
    ),
  );

  it("e4m3 codes in tiles, whose scale is a power of two", () =>
    forRows(tiled(8), (row, decoded, scales) =>
      row.forEach((x, d) => {
        const scale = scales[d >> 3];
        expect(Number.isInteger(Math.log2(scale))).toBe(true);
        expect(Math.abs(decoded[d] - x)).toBeLessThanOrEqual(Math.max(2 ** -4 * Math.abs(x), 2 ** -10 * scale));
        expect(Math.abs(decoded[d])).toBeLessThanOrEqual(448 * scale);
      }),
    ));
});

describe("bits of a row", () => {
  it("are a little-endian stream, padded to 4 bytes", () => {
    const codes = [5, 3, 7, 0, 1, 6, 2, 4, 7];
    const { units, scales } = encodeRows(grouped(3, 0), codes, codes.length);
    expect([...scales]).toEqual([1, 0]);
    const stream = codes.reduce((all, code, i) => all | (BigInt(code) << BigInt(3 * i)), 0n);
    expect(units).toEqual(Uint8Array.from({ length: 8 }, (_, i) => Number((stream >> BigInt(8 * i)) & 255n)));
  });

  it("hold the midpoint of symmetric codes for zero", () => {
    const { units, scales } = encodeRows(grouped(4, 0), [0, 7, -7, 0], 4, { symmetric: true });
    expect([...scales]).toEqual([1, 8]);
    expect([...units]).toEqual([0xf8, 0x81, 0, 0]);
  });
});

describe("numbers without a place in the storage", () => {
  it("saturate in f16 and the 8-bit floats, and stay what they are in f32 and bf16", () => {
    const far = [1e30, -Infinity];
    const stored = (storage: PageStorage) => [...decodeRows(storage, encodeRows(storage, far, 2), 2)];
    expect(stored("f16")).toEqual([65504, -65504]);
    expect(stored("f8e4m3")).toEqual([448, -448]);
    expect(stored("f8e5m2")).toEqual([57344, -57344]);
    expect(stored("f32")).toEqual([Math.fround(1e30), -Infinity]);
    expect(stored("bf16")[1]).toBe(-Infinity);
  });

  it.each(["i8", grouped(3, 0), grouped(4, 8), tiled(8)] as const)(
    "take those that share their scale with them: %j",
    (storage) => {
      for (const symmetric of [false, true]) {
        const row = [Number.NaN, ...new Float32Array(7).fill(2)];
        const decoded = decodeRows(storage, encodeRows(storage, row, 8, { symmetric }), 8);
        expect(decoded.every(Number.isNaN)).toBe(true);
        row[0] = Infinity;
        const unbounded = decodeRows(storage, encodeRows(storage, row, 8, { symmetric }), 8);
        expect(unbounded.some(Number.isFinite)).toBe(false);
      }
    },
  );
});

it.each(["i8", grouped(2, 0), grouped(8, 8), tiled(8)] as const)(
  "a row of zeros comes back as zeros: %j",
  (storage) => {
    for (const symmetric of [false, true]) {
      const decoded = decodeRows(storage, encodeRows(storage, new Float32Array(20), 20, { symmetric }), 20);
      expect(decoded.every((value) => value === 0)).toBe(true);
    }
  },
);

it("saturates groups on one side of 0 at their range, unless symmetric", () => {
  const far = [5, 5.5, 6, 5.25];
  const decoded = (symmetric: boolean): number[] => {
    const storage = grouped(8, 0);
    return [...decodeRows(storage, encodeRows(storage, far, 4, { symmetric }), 4)];
  };
  expect(decoded(false)).toEqual(far.map(() => expect.closeTo(1, 6)));
  expect(decoded(true)).toEqual(far.map((value) => expect.closeTo(value, 1)));
});

it("refuses parts of rows, and scales of another number of rows", () => {
  expect(() => encodeRows("f32", [1, 2, 3], 2)).toThrow(ArgumentError);
  expect(() => decodeRows("i8", { units: new Int8Array(8), scales: new Float32Array(3) }, 4)).toThrow(
    "scales must have 1 entries for each of 2 rows, got 3",
  );
});
