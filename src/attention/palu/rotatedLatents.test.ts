import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type PaluCase, paluCase, paluOnDevice, paluSpec, stored } from "../../../test/fixtures/attention/palu.ts";
import { normals, worstError } from "../../../test/ops/testDevice.ts";
import { CpuDevice } from "../../devices/index.ts";
import { decodeRows, encodeRows, type PageStorage } from "../../ops/attention/index.ts";
import { foldHadamard, hadamardTransform } from "../../ops/hadamard/index.ts";
import { expandLatents, fuseOutputProjection } from "./index.ts";

let device: CpuDevice;
beforeAll(async () => {
  device = await CpuDevice.create({ threads: 2 });
});
afterAll(() => device.close());

const lengths = [
  { queryLen: 1, kvLen: 37 },
  { queryLen: 6, kvLen: 20 },
];

/** Rows of latents [rows, sum of ranks] with each group's part times its Hadamard matrix. */
function rotated(ranks: readonly number[], rows: Float32Array): Float32Array {
  const row = ranks.reduce((a, b) => a + b, 0);
  const result = rows.slice();
  for (let at = 0; at < rows.length; at += row) {
    let from = at;
    for (const dim of ranks) {
      result.set(hadamardTransform({ dim }, rows.subarray(from, from + dim)), from);
      from += dim;
    }
  }
  return result;
}

/** Up-projections in kernel order, U H^T: each head's [rank, channels] has its columns transformed. */
function foldedUp(ranks: readonly number[], up: Float32Array, numKvHeads: number, channels: number): Float32Array {
  const result = new Float32Array(up.length);
  let at = 0;
  for (let head = 0; head < numKvHeads; head++) {
    const rank = ranks[Math.floor((head * ranks.length) / numKvHeads)];
    const u = Float64Array.from(
      { length: channels * rank },
      (_, i) => up[at + (i % rank) * channels + Math.floor(i / rank)],
    );
    const { u: folded } = foldHadamard(new Float64Array(rank), u, rank);
    for (let r = 0; r < rank; r++) {
      for (let d = 0; d < channels; d++) result[at + r * channels + d] = folded[d * rank + r];
    }
    at += rank * channels;
  }
  return result;
}

describe("latents turned by a Hadamard matrix", () => {
  // A power of two, a multiple of 12, blocks of 12 + 2 + 1, and one above the head dimension.
  const ranks = { ranksK: [16, 15], ranksV: [12, 20] };
  const spec = paluSpec({ numQHeads: 8, numKvHeads: 4, maxRankK: 16, maxRankV: 20, keyBias: true });
  const given = paluCase(spec, ranks, lengths);
  const upV = normals(4 * (12 + 20) * 8, 5).subarray(0, 2 * (12 + 20) * 16);

  it("make the same attention, expanded or through a fused output projection", async () => {
    const turned: PaluCase = {
      ...given,
      kLatents: rotated(ranks.ranksK, given.kLatents),
      vLatents: rotated(ranks.ranksV, given.vLatents),
      upK: foldedUp(ranks.ranksK, given.upK, 4, 16),
    };
    const [plain, other] = [await paluOnDevice(device, given), await paluOnDevice(device, turned)];
    const tight = { relative: 1e-5, absolute: 1e-5 };
    expect(worstError(other.lse, plain.lse, tight)).toBeLessThan(1);
    // Latent outputs are turned too, and U_v turns them back.
    expect(worstError(other.out, plain.out, tight)).toBeGreaterThan(1000);
    const foldedV = foldedUp(ranks.ranksV, upV, 4, 16);
    const full = expandLatents(plain.out, upV, ranks.ranksV, spec);
    expect(worstError(expandLatents(other.out, foldedV, ranks.ranksV, spec), full, tight)).toBeLessThan(1);
    const oProj = normals(10 * 8 * 16, 6).map((value) => value / 10);
    const project = (out: Float32Array, up: Float32Array): Float64Array => {
      const { weight, inFeatures } = fuseOutputProjection(oProj, up, ranks.ranksV, spec);
      return Float64Array.from({ length: (out.length / inFeatures) * 10 }, (_, at) => {
        let sum = 0;
        for (let i = 0; i < inFeatures; i++) {
          sum += weight[(at % 10) * inFeatures + i] * out[Math.floor(at / 10) * inFeatures + i];
        }
        return sum;
      });
    };
    expect(worstError(project(other.out, foldedV), project(plain.out, upV), tight)).toBeLessThan(1);
  });

  it.each([3, 4, 8] as const)("lose less to %i bits where one channel is much larger than the others", (bits) => {
    const storage: PageStorage = { kind: "grouped", bits, groupSize: 0 };
    const rank = 64;
    const rows = normals(32 * rank, 9).map((value, i) => (i % rank === 7 ? 40 * value : value));
    const error = (values: Float32Array): number => {
      const kept = decodeRows(storage, encodeRows(storage, values, rank), rank);
      return values.reduce((sum, value, i) => sum + (value - kept[i]) ** 2, 0);
    };
    expect(error(Float32Array.from(hadamardTransform({ dim: rank }, rows)))).toBeLessThan(0.5 * error(rows));
  });
});

describe("quantised latents", () => {
  const ranks = [20, 13];

  it.each([2, 3, 4, 8] as const)("of %i bits are off by at most half a step of a range that has 0 in it", (bits) => {
    for (const groupSize of [0, 8]) {
      const rows = normals(40 * 33, bits);
      const kept = stored({ kind: "grouped", bits, groupSize }, ranks, rows);
      for (let row = 0; row < 40; row++) {
        for (const [from, rank] of [
          [0, 20],
          [20, 13],
        ]) {
          const size = groupSize || rank;
          for (let begin = 0; begin < rank; begin += size) {
            const first = row * 33 + from + begin;
            const part = rows.subarray(first, first + Math.min(size, rank - begin));
            const [low, high] = [Math.min(0, ...part), Math.max(0, ...part)];
            const step = (high - low) / (2 ** bits - 1);
            const worst = Math.max(...part.map((value, i) => Math.abs(value - kept[first + i])));
            expect(worst).toBeLessThanOrEqual(0.501 * step);
          }
        }
      }
    }
  });

  it.each([0, 0.25, -3, 1e-7])(
    "that are all %f stay what they are, and so does attention over them",
    async (constant) => {
      for (const bits of [2, 3, 4, 8] as const) {
        const storage: PageStorage = { kind: "grouped", bits, groupSize: 8 };
        const spec = paluSpec({ storage, maxRankK: 20, maxRankV: 20 });
        const given = paluCase(spec, { ranksK: ranks, ranksV: ranks }, lengths);
        const flat = (latents: Float32Array) => latents.map((value) => (Number.isNaN(value) ? value : constant));
        const { out, lse } = await paluOnDevice(device, {
          ...given,
          kLatents: flat(given.kLatents),
          vLatents: flat(given.vLatents),
        });
        expect(out.every(Number.isFinite) && lse.every(Number.isFinite)).toBe(true);
        // Equal values: their weighted mean is what one of them decodes to.
        const [kept] = stored(storage, [8], new Float32Array(8).fill(constant));
        expect(Math.abs(kept - constant)).toBeLessThanOrEqual(2 ** -22 * Math.abs(constant));
        expect(
          worstError(out, new Float32Array(out.length).fill(kept), { relative: 1e-6, absolute: 1e-9 }),
        ).toBeLessThan(1);
      }
    },
  );
});
