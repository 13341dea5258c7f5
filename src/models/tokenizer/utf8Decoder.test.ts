import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type InvalidBytes, Utf8Decoder } from "./utf8Decoder.ts";

function decode(invalid: InvalidBytes, chunks: Uint8Array[], isByteToken = false): string {
  const decoder = new Utf8Decoder(invalid);
  return chunks.map((chunk) => decoder.push(chunk, isByteToken)).join("") + decoder.flush();
}

function split(bytes: Uint8Array, sizes: number[]): Uint8Array[] {
  const chunks: Uint8Array[] = [];
  let at = 0;
  for (const size of sizes) {
    chunks.push(bytes.subarray(at, at + size));
    at += size;
  }
  return [...chunks, bytes.subarray(at)];
}

describe("Utf8Decoder", () => {
  // Bytes around the limits of the encoding's ranges, so that almost valid sequences are frequent.
  const byte = fc.constantFrom(
    0x41,
    0x7f,
    0x80,
    0x8f,
    0x90,
    0x9f,
    0xa0,
    0xbf,
    0xc1,
    0xc2,
    0xe0,
    0xe1,
    0xed,
    0xef,
    0xf0,
    0xf1,
    0xf4,
    0xf5,
  );
  const sizes = fc.array(fc.nat(3), { maxLength: 12 });

  it("replaces invalid sequences as the platform's TextDecoder, however the bytes are cut", () => {
    const platform = new TextDecoder("utf-8", { ignoreBOM: true });
    const property = fc.property(fc.array(byte, { maxLength: 16 }), sizes, (list, cuts) => {
      const bytes = Uint8Array.from(list);
      expect(decode("perSequence", split(bytes, cuts))).toBe(platform.decode(bytes));
    });
    fc.assert(property, { numRuns: 1000, seed: 3 });
  });

  it("replaces each invalid byte, however the bytes are cut", () => {
    const property = fc.property(fc.array(byte, { maxLength: 16 }), sizes, (list, cuts) => {
      const bytes = Uint8Array.from(list);
      const whole = decode("perByte", [bytes]);
      expect(decode("perByte", split(bytes, cuts))).toBe(whole);
      // No byte is lost: a valid character has as many as it takes to encode, a replacement one.
      const numBytes = [...whole].reduce((n, c) => n + (c === "\ufffd" ? 1 : new TextEncoder().encode(c).length), 0);
      expect(numBytes).toBe(bytes.length);
    });
    fc.assert(property, { numRuns: 1000, seed: 4 });
  });

  it("never gives out half a character, and gives out a whole one at once", () => {
    const decoder = new Utf8Decoder("perByte");
    const [a, b, c, d] = new TextEncoder().encode("😀");
    expect([a, b, c].map((value) => decoder.push(Uint8Array.of(value), true))).toEqual(["", "", ""]);
    expect(decoder.push(Uint8Array.of(d, 0x41), true)).toBe("😀A");
    expect(decoder.flush()).toBe("");
  });

  it("gives up a whole run of byte tokens for one invalid byte where the rule says so", () => {
    const euro = new TextEncoder().encode("€");
    expect(decode("perRun", [euro], true)).toBe("€");
    expect(decode("perRun", [euro, Uint8Array.of(0xe2)], true)).toBe("\ufffd".repeat(4));
    const decoder = new Utf8Decoder("perRun");
    const text =
      decoder.push(euro, true) + decoder.push(Uint8Array.of(0x41), false) + decoder.push(Uint8Array.of(0xe2), true);
    expect(text + decoder.flush()).toBe("€A\ufffd");
  });

  it("keeps a byte order mark", () => {
    expect(decode("perByte", [new TextEncoder().encode("\ufeffa\ufeff")])).toBe("\ufeffa\ufeff");
  });
});
