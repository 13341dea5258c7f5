import { describe, expect, it } from "vitest";
import { latentCase, latentSpec, latentsOnReference } from "../../../test/fixtures/attention/latents.ts";
import {
  defaultSpec,
  type Lengths,
  largestError,
  numbers,
  onReference,
  raggedCase,
  withPageLists,
} from "../../../test/fixtures/attention/ragged.ts";
import { RopeTable, ropeReference } from "../rope/index.ts";
import type { AttentionBatch } from "./batch.ts";
import type { LatentSpec } from "./contract.ts";
import { attentionReference, type ReferenceSpec } from "./reference.ts";
import { nhdStrides } from "./storage.ts";

/** Query i of one sequence over contiguous keys of one head. */
function rows(kvLen: number, queryLen: number): AttentionBatch {
  return {
    numRows: queryLen,
    numSeqs: 1,
    queryIndptr: Int32Array.of(0, queryLen),
    kvLens: Int32Array.of(kvLen),
    blockTables: Int32Array.of(0),
    maxPages: 1,
    numPages: kvLen,
  };
}

const one: ReferenceSpec = { headDim: 1, numQHeads: 1, numKvHeads: 1, causal: true, smScale: 1 };
const strides = nhdStrides({ numKvHeads: 1, headDim: 1 });
const lengths: readonly Lengths[] = [
  { queryLen: 1, kvLen: 19 },
  { queryLen: 0, kvLen: 0 },
  { queryLen: 6, kvLen: 11 },
];

describe("by hand", () => {
  // Keys 0, ln 2 and ln 3 under a query of 1: weights 1, 2 and 3.
  const given = {
    q: [1, 1],
    kPages: [0, Math.log(2), Math.log(3)],
    vPages: [6, 12, 18],
    kStrides: strides,
    vStrides: strides,
  };

  it("weighs values by the exponential of their logits", () => {
    const { out, lse } = attentionReference(one, rows(3, 2), given);
    expect(out[0]).toBeCloseTo((6 + 24) / 3, 12);
    expect(out[1]).toBeCloseTo((6 + 24 + 54) / 6, 12);
    expect(lse[0]).toBeCloseTo(Math.log(3), 12);
    expect(lse[1]).toBeCloseTo(Math.log(6), 12);
  });

  it("gives a sink its share, but not in the lse", () => {
    const { out, lse } = attentionReference({ ...one, lseBase: "2" }, rows(3, 2), { ...given, sinks: [Math.log(6)] });
    expect(out[1]).toBeCloseTo((6 + 24 + 54) / 12, 12);
    expect(lse[1]).toBeCloseTo(Math.log2(6), 12);
  });

  it("adds ALiBi's bias before the soft cap, and the mask value after", () => {
    const spec = { ...one, softCap: 1, slidingWindow: 1, maskValue: -2 };
    const { lse } = attentionReference(spec, rows(2, 1), { ...given, alibiSlopes: [3] });
    expect(lse[0]).toBeCloseTo(Math.log(Math.exp(Math.tanh(Math.log(2))) + Math.exp(Math.tanh(-3) - 2)), 12);
  });

  it("hides what a mask's bits hide, whole rows too", () => {
    const customMask = { bits: Uint8Array.of(255, 0b101000), indptr: Int32Array.of(1) };
    const batch = { ...rows(3, 2), customMask };
    const { out, lse } = attentionReference({ ...one, causal: false, customMask: true }, batch, given);
    expect(out[0]).toBe(0);
    expect(out[1]).toBeCloseTo((6 + 54) / 4, 12);
    expect(lse[0]).toBe(-Infinity);
    expect(lse[1]).toBeCloseTo(Math.log(4), 12);
  });
});

describe("different words for the same attention agree", () => {
  const spec = defaultSpec({ headDim: 12, pageSize: 3 });
  const given = raggedCase(spec, lengths, 1, 2);

  it("pages, lists of pages, contiguous rows", () => {
    const want = onReference(given);
    expect(onReference({ ...given, batch: withPageLists(given) })).toEqual(want);
    expect(onReference(raggedCase({ ...spec, pageSize: undefined }, lengths, 1, 2))).toEqual(want);
  });

  it("strides left out and those of dense pages", () => {
    const base = { numQHeads: 4, numKvHeads: 2, pageSize: 3, causal: true, smScale: 1 };
    const ranks = { ranksK: [4], ranksV: [5] };
    const latent = { maxRankK: 4, keys: "rebuilt" } as const;
    const cases = [
      { spec: { ...base, headDim: 4, headDimV: 3 }, heads: 2, k: 4, v: 3 },
      { spec: { ...base, numKvHeads: 1, headDim: 6, headDimV: 4, mla: { ropeDim: 2 } }, heads: 1, k: 4, v: 2 },
      { spec: { ...base, headDim: 6, headDimV: 5, latent }, heads: 1, k: 4, v: 5 },
    ];
    for (const { spec, heads, k, v } of cases) {
      const batch = { ...rows(5, 2), blockTables: Int32Array.of(1, 0), maxPages: 2, numPages: 2 };
      const inputs = {
        q: numbers(1, 2 * 4 * spec.headDim),
        kPages: numbers(2, 6 * heads * k),
        vPages: numbers(3, 6 * heads * v),
        latent: { ...ranks, up: numbers(4, 2 * 4 * spec.headDim) },
      };
      const strides = (headDim: number) => nhdStrides({ pageSize: 3, numKvHeads: heads, headDim });
      const want = attentionReference(spec, batch, { ...inputs, kStrides: strides(k), vStrides: strides(v) });
      expect(want.out.every((value) => Number.isFinite(value) && value !== 0)).toBe(true);
      expect(attentionReference(spec, batch, inputs)).toEqual(want);
    }
  });

  it("a sink and a key whose value is zero", () => {
    const q = numbers(1, 4);
    const [kPages, vPages] = [numbers(2, 12), numbers(3, 12)];
    const shape = { headDim: 4, numQHeads: 1, numKvHeads: 1, causal: false, smScale: 1 };
    const wide = nhdStrides({ numKvHeads: 1, headDim: 4 });
    vPages.fill(0, 8);
    const inputs = { q, kPages, vPages, kStrides: wide, vStrides: wide };
    const sink = q.reduce((dot, value, d) => dot + value * kPages[8 + d], 0);
    const want = attentionReference(shape, rows(3, 1), inputs).out;
    const got = attentionReference(shape, rows(2, 1), { ...inputs, sinks: [sink] }).out;
    expect(largestError(Float32Array.from(got), Float32Array.from(want))).toBeLessThan(1e-7);
  });

  it("an MLA token and its key and value written out", () => {
    const mla = raggedCase(
      defaultSpec({ headDim: 11, headDimV: 8, mla: { ropeDim: 3 }, numKvHeads: 1, pageSize: 3 }),
      lengths,
    );
    const kPages = new Float32Array((mla.kPages.length / 8) * 11);
    for (let row = 0; row * 8 < mla.kPages.length; row++) {
      kPages.set(mla.kPages.subarray(row * 8, row * 8 + 8), row * 11);
      kPages.set(mla.vPages.subarray(row * 3, row * 3 + 3), row * 11 + 8);
    }
    const plain = { ...mla, spec: { ...mla.spec, mla: undefined }, kPages, vPages: mla.kPages };
    expect(onReference(mla)).toEqual(onReference(plain));
  });

  it.each(["halves", "interleaved"] as const)("keys rotated on load and keys rotated before, in %s", (style) => {
    const ropeSpec = { headDim: 12, rotaryDim: 8, style, theta: 300, scaling: { type: "default" } } as const;
    const offsets = [100, 0, 7];
    const rotatedK = given.kPages.slice();
    const rotatedQ = given.q.slice();
    const rotate = (x: Float32Array, at: number, heads: number, position: number): void =>
      x.set(ropeReference(ropeSpec, x.subarray(at, at + heads * 12), [position], heads), at);
    const { blockTables, maxPages, queryIndptr } = given.batch;
    for (const [s, { queryLen, kvLen }] of lengths.entries()) {
      for (let t = 0; t < kvLen; t++) {
        const slot = blockTables[s * maxPages + Math.floor(t / 3)] * 3 + (t % 3);
        rotate(rotatedK, slot * 24, 2, offsets[s] + t);
      }
      for (let i = 0; i < queryLen; i++)
        rotate(rotatedQ, (queryIndptr[s] + i) * 48, 4, offsets[s] + kvLen - queryLen + i);
    }
    const rope = { style, dim: 8, queries: true };
    const ropeTable = new RopeTable(ropeSpec).rows(130);
    const batch = { ...given.batch, positionOffsets: Int32Array.from(offsets) };
    const got = onReference({ ...given, spec: { ...spec, rope }, batch, ropeTable });
    expect(largestError(got.out, onReference({ ...given, q: rotatedQ, kPages: rotatedK }).out)).toBeLessThan(1e-6);
  });
});

describe("latents are low-rank keys and values", () => {
  const ranks = { ranksK: [5, 9], ranksV: [7, 2] };
  const spec = latentSpec(ranks, { numQHeads: 8, numKvHeads: 4, headDim: 12, pageSize: 3 });
  const given = latentCase(spec, ranks, lengths);

  it("equal plain attention over rebuilt keys, head by head", () => {
    const bias = numbers(5, 4 * 12);
    const want = latentsOnReference({ ...given, spec: { ...spec, latent: { ...latent(), bias: true } }, bias });
    for (let head = 0; head < 8; head++) {
      const [kvHead, group] = [head >> 1, head >> 2];
      const [rank, rankV] = [ranks.ranksK[group], ranks.ranksV[group]];
      const upAt = [0, 60, 120, 228][kvHead];
      const tokens = given.k.decoded.length / 14;
      const kPages = new Float64Array(tokens * 12);
      const vPages = new Float64Array(tokens * rankV);
      for (let t = 0; t < tokens; t++) {
        for (let d = 0; d < 12; d++) {
          let key = bias[kvHead * 12 + d];
          for (let r = 0; r < rank; r++) key += given.k.decoded[t * 14 + 5 * group + r] * given.up[upAt + r * 12 + d];
          kPages[t * 12 + d] = key;
        }
        for (let r = 0; r < rankV; r++) vPages[t * rankV + r] = given.v.decoded[t * 9 + 7 * group + r];
      }
      const plain = { ...spec, latent: undefined, numQHeads: 1, numKvHeads: 1, headDimV: rankV };
      const strides = (headDim: number) => nhdStrides({ pageSize: 3, numKvHeads: 1, headDim });
      const q = given.q.filter((_, i) => Math.floor(i / 12) % 8 === head);
      const { out } = attentionReference(plain, given.batch, {
        q,
        kPages,
        vPages,
        kStrides: strides(12),
        vStrides: strides(rankV),
      });
      const own = want.out.filter((_, i) => {
        const at = (i % given.layout.outRow) - given.layout.outOffsets[head];
        return at >= 0 && at < rankV;
      });
      expect(largestError(own, Float32Array.from(out))).toBeLessThan(1e-6);
    }
  });

  it("absorbed: a query times U_k^T meets the latents", () => {
    const absorbed = new Float32Array((given.q.length / 12) * 9);
    for (let at = 0; at * 12 < given.q.length; at++) {
      const kvHead = (at % 8) >> 1;
      for (let r = 0; r < ranks.ranksK[kvHead >> 1]; r++) {
        let dot = 0;
        for (let d = 0; d < 12; d++) dot += given.q[at * 12 + d] * given.up[[0, 60, 120, 228][kvHead] + r * 12 + d];
        absorbed[at * 9 + r] = dot;
      }
    }
    const changed = { ...spec, headDim: 9, latent: { ...latent(), keys: "absorbed" } } as const;
    const got = latentsOnReference({ ...given, spec: changed, q: absorbed });
    const want = latentsOnReference(given);
    expect(largestError(got.out, want.out)).toBeLessThan(1e-6);
    expect(largestError(got.lse, want.lse)).toBeLessThan(1e-6);
  });

  it("the same in a window of recent tokens as in pages", () => {
    const recent = latentCase({ ...spec, latent: { ...latent(), recent: "f32" } }, ranks, lengths, {
      capacity: 7,
      tokens: 5,
    });
    expect(latentsOnReference(recent)).toEqual(latentsOnReference(given));
  });

  function latent(): LatentSpec {
    return { maxRankK: 9, keys: "rebuilt" };
  }
});

describe("refuses", () => {
  it("inputs that the spec needs and that are not there", () => {
    const given = { q: [1], kPages: [1], vPages: [1], kStrides: strides, vStrides: strides };
    const rope = { style: "halves", dim: 2 } as const;
    expect(() => attentionReference({ ...one, headDim: 2, rope }, rows(1, 1), given)).toThrow(
      "ropeTable must be given",
    );
    const latent = { maxRankK: 1, keys: "rebuilt" } as const;
    expect(() => attentionReference({ ...one, headDimV: 1, latent }, rows(1, 1), given)).toThrow(
      "latent must be given",
    );
  });

  it("a spec out of range, as everyone else does", () => {
    const given = { q: [1], kPages: [1], vPages: [1], kStrides: strides, vStrides: strides };
    expect(() => attentionReference({ ...one, softCap: 0 }, rows(1, 1), given)).toThrow("softCap must be a positive");
  });
});
