import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { ArgumentError } from "../../tensor/index.ts";
import { type GroupedStorage, type PageStorage, rowElements, rowScales } from "./storage.ts";
import { decodeRows, type EncodeOptions, encodeRows } from "./storageCodec.ts";

const grouped = (bits: 2 | 3 | 4 | 8, groupSize: number): GroupedStorage => ({ kind: "grouped", bits, groupSize });
const tiled = (tile: number): PageStorage => ({ kind: "tiled", tile });

const numbers = fc.array(fc.float({ min: -100, max: 100, noNaN: true, noDefaultInfinity: true }), {
  minLength: 90,
  maxLength: 90,
});
const channelCounts = fc.integer({ min: 1, max: 45 });

const ranges = ["withZero", "values", "symmetric"] as const;

/** Numbers on both sides of 0, on one side of it, and nearly or exactly equal. */
const clusters = fc
  .tuple(numbers, fc.constantFrom(0, 1e-6, 3, -40, 1e4), fc.constantFrom(0, 1e-4, 1, 50))
  .map(([all, center, spread]) => all.map((x) => center + (x / 100) * spread));

/** `check` gets every row with what it came back as; the shapes are checked here. */
function forRows(
  storage: PageStorage,
  check: (row: Float32Array, decoded: Float32Array, scales: Float32Array) => void,
  { range, rows: arrays = numbers }: { range?: EncodeOptions["range"]; rows?: fc.Arbitrary<number[]> } = {},
): void {
  fc.assert(
    fc.property(channelCounts, arrays, (channels, all) => {
      const rows = Math.floor(all.length / channels);
      const values = Float32Array.from(all.slice(0, rows * channels));
      const stored = encodeRows(storage, values, channels, { range });
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

  describe.each([
    [2, 0],
    [3, 8],
    [3, 0],
    [4, 16],
    [8, 16],
  ] as const)("codes of %i bits in groups of %i", (bits, groupSize) => {
    const largestCode = 2 ** bits - 1;

    /** `check` gets each group with what it came back as, its scale and its zero point. */
    function forGroups(
      range: EncodeOptions["range"],
      check: (group: Float32Array, decoded: Float32Array, scale: number, zero: number) => void,
    ): void {
      forRows(
        grouped(bits, groupSize),
        (row, decoded, scales) => {
          const size = groupSize || row.length;
          for (let first = 0, g = 0; first < row.length; first += size, g++) {
            check(
              row.subarray(first, first + size),
              decoded.subarray(first, first + size),
              scales[2 * g],
              scales[2 * g + 1],
            );
          }
        },
        { range, rows: clusters },
      );
    }

    it("keep every number to half a step of their range with 0", () =>
      forGroups(undefined, (group, decoded, scale, zero) => {
        const range = Math.max(0, ...group) - Math.min(0, ...group);
        expect(scale).toBeGreaterThan(0);
        expect(Math.abs(scale * largestCode - range)).toBeLessThanOrEqual(2 ** -22 * range + 2 ** -99);
        expect(zero).toBe(Math.min(Math.max(Math.round(zero), 0), largestCode));
        group.forEach((x, d) => {
          expect(Math.abs(decoded[d] - x)).toBeLessThanOrEqual(0.501 * scale);
        });
      }));

    it("keep numbers to half a step of their own range where it has 0 in it", () =>
      forGroups("values", (group, decoded, scale, zero) => {
        const [min, max] = [Math.min(...group), Math.max(...group)];
        const range = Math.max(max - min, 1e-5);
        expect(Math.abs(scale * largestCode - range)).toBeLessThanOrEqual(2 ** -22 * range);
        expect(zero).toBe(Math.min(Math.max(Math.round(zero), 0), largestCode));
        group.forEach((x, d) => {
          const reached = Math.min(Math.max(x, -zero * scale), (largestCode - zero) * scale);
          const nearest = min <= 0 && max >= 0 ? x : reached;
          expect(Math.abs(decoded[d] - nearest)).toBeLessThanOrEqual(0.501 * scale);
        });
      }));

    it("keep every number to half a step of a range as far on both sides of 0", () =>
      forGroups("symmetric", (group, decoded, scale, zero) => {
        const range = Math.max(1e-5, ...group.map(Math.abs));
        expect(Math.abs(scale * (2 ** (bits - 1) - 1) - range)).toBeLessThanOrEqual(2 ** -22 * range);
        expect(zero).toBe(2 ** (bits - 1));
        group.forEach((x, d) => {
          expect(Math.abs(decoded[d] - x)).toBeLessThanOrEqual(0.501 * scale);
        });
      }));

    it("keep equal numbers, whatever their size", () => {
      const sizes = fc.float({ min: Math.fround(2 ** -100), max: Math.fround(1e38), noNaN: true });
      fc.assert(
        fc.property(sizes, fc.boolean(), channelCounts, (size, isNegative, channels) => {
          const row = new Float32Array(channels).fill(isNegative ? -size : size);
          const storage = grouped(bits, groupSize);
          for (const value of decodeRows(storage, encodeRows(storage, row, channels), channels)) {
            expect(Math.abs(value - row[0])).toBeLessThanOrEqual(2 ** -22 * size);
          }
        }),
        { numRuns: 100, seed: 4 },
      );
    });
  });

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
    const { units, scales } = encodeRows(grouped(4, 0), [0, 7, -7, 0], 4, { range: "symmetric" });
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
      for (const range of ranges) {
        const row = [Number.NaN, ...new Float32Array(7).fill(2)];
        const decoded = decodeRows(storage, encodeRows(storage, row, 8, { range }), 8);
        expect(decoded.every(Number.isNaN)).toBe(true);
        row[0] = Infinity;
        const unbounded = decodeRows(storage, encodeRows(storage, row, 8, { range }), 8);
        expect(unbounded.some(Number.isFinite)).toBe(false);
      }
    },
  );
});

it.each(["i8", grouped(2, 0), grouped(8, 8), tiled(8)] as const)(
  "a row of zeros comes back as zeros: %j",
  (storage) => {
    for (const range of ranges) {
      const decoded = decodeRows(storage, encodeRows(storage, new Float32Array(20), 20, { range }), 20);
      expect(decoded.every((value) => value === 0)).toBe(true);
    }
  },
);

it("saturates groups on one side of 0 at their range only where that is the values' own", () => {
  const far = [5, 5.5, 6, 5.25];
  const decoded = (range: EncodeOptions["range"]): number[] => {
    const storage = grouped(8, 0);
    return [...decodeRows(storage, encodeRows(storage, far, 4, { range }), 4)];
  };
  expect(decoded("values")).toEqual(far.map(() => expect.closeTo(1, 6)));
  expect(decoded("withZero")).toEqual(far.map((value) => expect.closeTo(value, 1)));
  expect(decoded("withZero")).toEqual(decoded(undefined));
  expect(decoded("symmetric")).toEqual(far.map((value) => expect.closeTo(value, 1)));
});

it("refuses a range that there is not, and a share of it above 1", () => {
  const encode = (options: EncodeOptions): unknown => encodeRows(grouped(4, 0), [1, 2], 2, options);
  expect(() => encode({ range: "asymmetric" as "values" })).toThrow(
    "encoding.range must be withZero, values or symmetric, got asymmetric",
  );
  expect(() => encode({ clipRatio: 1.5 })).toThrow("encoding.clipRatio must be a number from 0 to 1, got 1.5");
});

it("refuses parts of rows, and scales of another number of rows", () => {
  expect(() => encodeRows("f32", [1, 2, 3], 2)).toThrow(ArgumentError);
  expect(() => decodeRows("i8", { units: new Int8Array(8), scales: new Float32Array(3) }, 4)).toThrow(
    "scales must have 1 entries for each of 2 rows, got 3",
  );
});
