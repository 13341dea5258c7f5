import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { normals, type TestDevice, testDevices, worstError } from "../../../test/ops/testDevice.ts";
import {
  CpuHadamard,
  foldHadamard,
  hadamardBlocks,
  hadamardFactors,
  hadamardMatrix,
  hadamardSigns,
  hadamardTransform,
} from "./index.ts";

/** Rows of `signs` times each other: n on the diagonal, 0 elsewhere, in whole numbers. */
function isHadamard(signs: Int8Array, n: number): boolean {
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let dot = 0;
      for (let c = 0; c < n; c++) dot += signs[i * n + c] * signs[j * n + c];
      if (dot !== (i === j ? n : 0)) return false;
    }
  }
  return signs.every((sign) => sign === 1 || sign === -1);
}

describe("Hadamard matrices", () => {
  // 1, 2 and 4: Sylvester; 12, 20, 44: Paley I; 28, 36, 60: Paley II; 52, 100, 244: over 25, 49 and 121 elements.
  it.each([1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 44, 48, 52, 56, 60, 80, 96, 100, 108, 112, 140, 200, 244])(
    "have orthogonal rows of signs for order %i",
    (n) => {
      const signs = hadamardSigns(n);
      expect(signs && isHadamard(signs, n)).toBe(true);
    },
  );

  it("of powers of two are Sylvester's", () => {
    expect([...(hadamardSigns(4) ?? [])]).toEqual([1, 1, 1, 1, 1, -1, 1, -1, 1, 1, -1, -1, 1, -1, -1, 1]);
  });

  it("exist for the ranks that Palu's tables miss", () => {
    expect([800, 928, 992].map(hadamardBlocks)).toEqual([[800], [928], [992]]);
  });

  it("have the smallest factor", () => {
    expect([1024, 96, 320, 448].map(hadamardFactors)).toEqual([
      { factor: 1, doublings: 10 },
      { factor: 12, doublings: 3 },
      { factor: 20, doublings: 4 },
      { factor: 28, doublings: 4 },
    ]);
  });

  it("do not exist where the order is no multiple of 4", () => {
    expect([3, 5, 6, 10, 14, 18, 30].map(hadamardFactors)).toEqual(new Array(7).fill(undefined));
  });

  it("are replaced by blocks that add up, largest first", () => {
    expect(hadamardBlocks(15)).toEqual([12, 2, 1]);
    expect(hadamardBlocks(10)).toEqual([8, 2]);
    expect(hadamardBlocks(172)).toEqual([168, 4]);
  });

  it("are orthonormal for every dimension up to 70, by blocks if need be", () => {
    for (let n = 1; n <= 70; n++) {
      const matrix = hadamardMatrix(n);
      let worst = 0;
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < n; j++) {
          let dot = 0;
          for (let c = 0; c < n; c++) dot += matrix[i * n + c] * matrix[j * n + c];
          worst = Math.max(worst, Math.abs(dot - (i === j ? 1 : 0)));
        }
      }
      expect(worst, `n = ${n}`).toBeLessThan(1e-14);
    }
  });

  it("refuse what is no size", () => {
    expect(() => hadamardMatrix(0)).toThrow("n must be a whole number of at least 1, got 0");
    expect(() => hadamardBlocks(2.5)).toThrow("n must be a whole number of at least 1, got 2.5");
  });
});

describe("foldHadamard", () => {
  it.each([16, 20, 15, 28, 1, 104])("leaves U VT as it was and rotates the latents, for rank %i", (rank) => {
    const [inFeatures, outFeatures] = [9, 7];
    const vt = normals(rank * inFeatures, 1);
    const u = normals(outFeatures * rank, 2);
    const folded = foldHadamard(vt, u, rank);
    expect(worstError(product(folded.u, folded.vt), product(u, vt), { relative: 0, absolute: 1e-13 })).toBeLessThan(1);
    const x = normals(inFeatures, 3);
    const latents = product(vt, x, inFeatures);
    const rotated = hadamardTransform({ dim: rank }, latents);
    expect(worstError(product(folded.vt, x, inFeatures), rotated, { relative: 0, absolute: 1e-13 })).toBeLessThan(1);
    // H alone would pass the first check if it were the identity: it is not.
    if (rank > 1) expect(worstError(rotated, latents, { relative: 0, absolute: 0.1 })).toBeGreaterThan(1);

    function product(a: ArrayLike<number>, b: ArrayLike<number>, inner = rank): Float64Array {
      const [rows, columns] = [a.length / inner, b.length / inner];
      return Float64Array.from({ length: rows * columns }, (_, at) => {
        const [i, j] = [Math.floor(at / columns), at % columns];
        let sum = 0;
        for (let c = 0; c < inner; c++) sum += a[i * inner + c] * b[c * columns + j];
        return sum;
      });
    }
  });

  it("spreads an outlier over the channels", () => {
    const rank = 32;
    const latent = new Float64Array(rank);
    latent[5] = 100;
    const rotated = hadamardTransform({ dim: rank }, latent);
    expect(rotated.every((value) => Math.abs(Math.abs(value) - 100 / Math.sqrt(rank)) < 1e-12)).toBe(true);
  });

  it("names the factor that is not of this rank", () => {
    expect(() => foldHadamard(new Float64Array(12), new Float64Array(10), 4)).toThrow(
      "u must have a multiple of rank = 4 elements, got 10",
    );
  });
});

describe.each(Object.entries(testDevices))("the Hadamard transform on %s", (_name, create) => {
  let test: TestDevice;
  beforeAll(async () => {
    test = await create();
  });
  afterEach(() => test.clear());
  afterAll(() => test.close());

  it.each([1, 2, 4, 8, 16, 64, 128, 1024, 12, 20, 28, 24, 80, 224, 36, 52, 3, 10, 14, 15, 30, 65])(
    "equals the reference and its inverse undoes it, for dimension %i",
    async (dim) => {
      const numRows = dim > 500 ? 3 : 37;
      const values = normals(numRows * dim, dim);
      const x = test.f32([numRows, dim], values);
      const [out, back] = [1, 2].map(() => test.f32([numRows, dim], new Float32Array(numRows * dim)));
      const forward = new CpuHadamard(test.device, { dim });
      const inverse = new CpuHadamard(test.device, { dim, inverse: true });
      await test.run((recorder) => {
        forward.record(recorder, { x, out });
        inverse.record(recorder, { x: out, out: back });
      });
      // Each sum has at most factor + log2(dim) roundings of numbers of order 1.
      const tolerance = { relative: 2e-6, absolute: 2e-6 };
      expect(worstError(test.readF32(out), hadamardTransform({ dim }, values), tolerance)).toBeLessThan(1);
      expect(worstError(test.readF32(back), values, tolerance)).toBeLessThan(1);
      forward.release();
      inverse.release();
    },
  );

  it("works in place, in columns of a wider matrix, and leaves other columns and rows alone", async () => {
    const values = normals(5 * 40, 1);
    const x = test.f32([5, 40], values);
    const columns = { ...x, pointer: x.pointer + 3 * 4, shape: [5, 30], rowStride: 40 };
    const transform = new CpuHadamard(test.device, { dim: 30 });
    await test.run((recorder) => transform.record(recorder, { x: columns, out: columns, numRows: 4 }));
    const got = test.readF32(x);
    for (let row = 0; row < 5; row++) {
      const want = values.slice(row * 40, (row + 1) * 40);
      if (row < 4) want.set(hadamardTransform({ dim: 30 }, want.subarray(3, 33)), 3);
      expect(worstError(got.subarray(row * 40, (row + 1) * 40), want, { relative: 0, absolute: 2e-6 })).toBeLessThan(1);
    }
    transform.release();
  });

  it("names what is wrong", () => {
    const transform = new CpuHadamard(test.device, { dim: 16 });
    const commands = test.device.commands();
    const x = test.f32([2, 16], new Float32Array(32));
    expect(() => transform.record({ commands }, { x: { ...x, shape: [2, 15] }, out: x })).toThrow(
      "x must have rows of 16 elements, got shape [2, 15]",
    );
    expect(() => transform.record({ commands }, { x, out: { ...x, rowStride: 0 } })).toThrow(
      "out.rowStride must be at least 16",
    );
    expect(() => new CpuHadamard(test.device, { dim: -1 })).toThrow("dim must be a whole number of at least 1, got -1");
    transform.release();
    transform.release();
    expect(() => transform.record({ commands }, { x, out: x })).toThrow("record: this transform was released");
    commands.free();
  });
});
