import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { packedIndptr, packMask, treeMask, unpackMask } from "./masks.ts";

describe("packMask", () => {
  it("puts the first pair into the lowest bit, and starts a byte for each sequence", () => {
    const mask = [1, 0, 1, 1, 0, 1, /* next */ 1, 1, 0, 0, 0, 0, 0, 0, 1, 0];
    const packed = packMask(mask, { qLens: [2, 0, 5], kvLens: [3, 9, 2] });
    expect([...packed.bits]).toEqual([0b101101, 0b00000011, 0b01]);
    expect([...packed.indptr]).toEqual([0, 1, 1, 3]);
  });

  it("is undone by unpackMask, whatever the lengths", () => {
    const lengths = fc.array(fc.record({ q: fc.nat(9), kv: fc.nat(13) }), { maxLength: 5 });
    fc.assert(
      fc.property(lengths, fc.infiniteStream(fc.boolean()), (sequences, bits) => {
        const given = { qLens: sequences.map(({ q }) => q), kvLens: sequences.map(({ kv }) => kv) };
        const total = sequences.reduce((sum, { q, kv }) => sum + q * kv, 0);
        const mask = Array.from({ length: total }, () => bits.next().value as boolean); // the stream has no end
        const packed = packMask(mask, given);
        expect(packed.indptr).toEqual(packedIndptr(given));
        expect([...unpackMask(packed, given)]).toEqual(mask.map(Number));
      }),
    );
  });

  it("names what does not fit", () => {
    const lengths = { qLens: [2, 1], kvLens: [3, 2] };
    expect(() => packMask(new Uint8Array(7), lengths)).toThrow(
      "mask must have qLen * kvLen entries of each sequence, together 8, got 7",
    );
    expect(() => packMask([], { qLens: [1], kvLens: [] })).toThrow(
      "kvLens must have an entry for each of the 1 of qLens, got 0",
    );
    const short = { bits: new Uint8Array(1), indptr: Int32Array.of(0, 1) };
    expect(() => unpackMask(short, lengths)).toThrow(
      "indptr[1] = 1 must leave 1 of the 1 bytes of the mask for sequence 1",
    );
  });
});

describe("treeMask", () => {
  it("shows each draft the context, its ancestors and itself", () => {
    //  0 - 1 - 3
    //    \ 2        4 is a second root
    const rows = treeMask([-1, 0, 0, 1, -1], 7);
    expect(Array.from({ length: 5 }, (_, i) => rows.subarray(i * 7, (i + 1) * 7).join(""))).toEqual([
      "1110000",
      "1111000",
      "1110100",
      "1111010",
      "1100001",
    ]);
  });

  it("is causal for a chain", () => {
    const rows = treeMask([-1, 0, 1], 5);
    expect([...rows]).toEqual([1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]);
  });

  it("names a parent that is none", () => {
    expect(() => treeMask([-1, 1], 4)).toThrow("parents[1] must be -1 or an earlier draft, below 1, got 1");
    expect(() => treeMask([-2], 4)).toThrow("parents[0] must be -1 or an earlier draft, below 0, got -2");
    expect(() => treeMask([-1, 0], 1)).toThrow("kvLen counts the 2 drafted tokens and so must be at least that, got 1");
  });
});
