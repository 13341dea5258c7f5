/**
 * How far attention over stored keys and values is from float64 attention over the numbers before they were stored: by each storage type's
 * largest rounding error, which bounds the result, and by what normal numbers give. docs/architecture.md states both.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { defaultSpec, onDevice, type RaggedCase, raggedCase } from "../../../test/fixtures/attention/ragged.ts";
import { normals } from "../../../test/ops/testDevice.ts";
import { CpuDevice } from "../../devices/index.ts";
import { attentionReference } from "./reference.ts";
import { type GroupedStorage, nhdStrides, type PageStorage } from "./storage.ts";
import { encodeRows } from "./storageCodec.ts";

const grouped = (bits: GroupedStorage["bits"], groupSize: number): PageStorage => ({
  kind: "grouped",
  bits,
  groupSize,
});

/** The largest error of a stored number, given its row. Relative to the number for floats, to the row's or group's range for codes. */
function roundingErrors(storage: PageStorage, row: Float32Array): number[] {
  const parts = (size: number) => {
    const length = size === 0 ? row.length : size;
    const each = Array.from({ length: Math.ceil(row.length / length) }, (_, i) => {
      const part = row.subarray(i * length, (i + 1) * length);
      return { largest: Math.max(...part.map(Math.abs)), range: Math.max(...part) - Math.min(...part) };
    });
    return Array.from(row, (_, d) => each[Math.floor(d / length)]);
  };
  const float = (bits: number, least: number) => Array.from(row, (x) => Math.max(2 ** -bits * Math.abs(x), least));
  if (typeof storage === "object") {
    const { kind } = storage;
    const of = parts(kind === "tiled" ? storage.tile : storage.groupSize);
    if (kind === "grouped") return of.map(({ range }) => (0.501 * range) / (2 ** storage.bits - 1));
    // The tile's scale is at most twice max |x| / 448.
    return of.map(({ largest }, d) => Math.max(2 ** -4 * Math.abs(row[d]), (2 ** -10 * 2 * largest) / 448));
  }
  switch (storage) {
    case "f32":
      return Array.from(row, () => 0);
    case "f16":
      return float(11, 2 ** -25);
    case "bf16":
      return float(8, 2 ** -134);
    case "f8e4m3":
      return float(4, 2 ** -10);
    case "f8e5m2":
      return float(3, 2 ** -17);
    case "i8":
      return parts(0).map(({ largest }) => (0.501 / 127.5) * largest);
  }
}

/**
 * With logits that are off by at most d and values by at most e, weights are off by a factor of at most exp(2 d), and so the lse by d and an
 * output o by (exp(2 d) - 1) * sum(p |v - o|) + e. `out` and `lse` are the exact results.
 */
function bounds(given: RaggedCase, exact: { out: Float64Array; lse: Float64Array }) {
  const { spec, batch, q, kPages, vPages } = given;
  const { numQHeads, numKvHeads, headDim: D, storage, smScale, pageSize = 1 } = spec;
  const out = new Float64Array(exact.out.length);
  const lse = new Float64Array(exact.lse.length);
  for (let s = 0; s < batch.numSeqs; s++) {
    const rows = Array.from({ length: batch.kvLens[s] * numKvHeads }, (_, i) => {
      const t = Math.floor(i / numKvHeads);
      const page = batch.blockTables[s * batch.maxPages + Math.floor(t / pageSize)];
      const at = ((page * pageSize + (t % pageSize)) * numKvHeads + (i % numKvHeads)) * D;
      const [k, v] = [kPages.subarray(at, at + D), vPages.subarray(at, at + D)];
      return { k, v, kError: roundingErrors(storage, k), vError: roundingErrors(storage, v) };
    });
    for (let row = batch.queryIndptr[s]; row < batch.queryIndptr[s + 1]; row++) {
      for (let h = 0; h < numQHeads; h++) {
        const at = row * numQHeads + h;
        const query = q.subarray(at * D, (at + 1) * D);
        const kvHead = Math.floor((h * numKvHeads) / numQHeads);
        const keys = rows.filter((_, i) => i % numKvHeads === kvHead);
        const dot = (x: ArrayLike<number>, f = (value: number) => value) =>
          query.reduce((sum, value, d) => sum + f(value) * x[d], 0) * smScale;
        lse[at] = Math.max(...keys.map(({ kError }) => dot(kError, Math.abs)));
        const weights = keys.map(({ k }) => Math.exp(dot(k) - exact.lse[at]));
        for (let d = 0; d < D; d++) {
          const spread = keys.reduce((sum, { v }, t) => sum + weights[t] * Math.abs(v[d] - exact.out[at * D + d]), 0);
          out[at * D + d] = Math.expm1(2 * lse[at]) * spread + Math.max(...keys.map(({ vError }) => vError[d]));
        }
      }
    }
  }
  return { out, lse };
}

const largest = (got: Float32Array, want: Float64Array): number =>
  want.reduce((worst, x, i) => Math.max(worst, Number.isNaN(got[i]) ? Infinity : Math.abs(got[i] - x)), 0);
/** The largest error in units of its bound, f32's own rounding allowed for. */
const inBounds = (got: Float32Array, want: Float64Array, bound: Float64Array): number =>
  want.reduce((worst, x, i) => Math.max(worst, (Math.abs(got[i] - x) - 3e-6) / (bound[i] + 1e-12)), 0);

/** Heads of 64 channels, all numbers standard normal, 300 keys: the largest error of an output and of an lse. */
const stated: readonly (readonly [PageStorage, number, number])[] = [
  ["f32", 1e-6, 1e-6],
  ["f16", 1e-3, 3e-4],
  ["bf16", 8e-3, 2e-3],
  ["f8e4m3", 0.1, 0.04],
  ["f8e5m2", 0.25, 0.07],
  [{ kind: "tiled", tile: 32 }, 0.1, 0.04],
  ["i8", 0.02, 0.01],
  [grouped(8, 0), 0.02, 0.01],
  [grouped(4, 32), 0.3, 0.15],
  [grouped(2, 16), 1, 0.6],
];

describe("against float64 over the numbers before they were stored", () => {
  let device: CpuDevice;
  beforeAll(async () => {
    device = await CpuDevice.create({ threads: 2 });
  });
  afterAll(() => device.close());

  it.each(stated)(
    "%j is within the bound of its rounding, out within %f and lse within %f",
    async (storage, out, lse) => {
      const spec = defaultSpec({ storage, headDim: 64, causal: false });
      const shape = raggedCase(defaultSpec({ headDim: 64 }), [
        { queryLen: 2, kvLen: 300 },
        { queryLen: 3, kvLen: 17 },
      ]);
      const random = (of: Float32Array, seed: number) => {
        const numbers = normals(of.length, seed);
        return of.map((value, i) => (Number.isNaN(value) ? value : numbers[i]));
      };
      const [q, kPages, vPages] = [shape.q, shape.kPages, shape.vPages].map(random);
      const given = { ...shape, spec, q, kPages, vPages };
      const k = encodeRows(storage, kPages, 64);
      const v = encodeRows(storage, vPages, 64);
      const got = await onDevice(device, { ...given, stored: { k, v } });
      const strides = nhdStrides(spec);
      const exact = attentionReference(spec, given.batch, { q, kPages, vPages, kStrides: strides, vStrides: strides });
      const bound = bounds(given, exact);
      const ratio = { out: inBounds(got.out, exact.out, bound.out), lse: inBounds(got.lse, exact.lse, bound.lse) };
      expect(ratio.out).toBeLessThanOrEqual(1);
      expect(ratio.lse).toBeLessThanOrEqual(1);
      // The bound is of the size of the error: it would notice a coarser code.
      if (storage !== "f32") expect(ratio.lse).toBeGreaterThan(0.02);
      expect(largest(got.out, exact.out)).toBeLessThan(out);
      expect(largest(got.lse, exact.lse)).toBeLessThan(lse);
    },
  );
});
