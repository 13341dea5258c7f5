import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  bf16FromF32,
  bf16ToF32,
  e4m3ToF32,
  e5m2ToF32,
  f16FromF32,
  f16ToF32,
  f32FromBf16,
  f32FromF16,
  f32ToBf16,
  f32ToE4m3,
  f32ToE5m2,
  f32ToF16,
} from "./float16.ts";

/** Base64 of float32 inputs, 16-bit codes and, for 8-bit formats, the 256 values: computed by ml_dtypes and numpy. */
interface CastCase {
  x: string;
  codes: string;
  table?: string;
}

const cases: Record<string, CastCase> = JSON.parse(
  readFileSync(new URL("../../test/fixtures/formats/casts.json", import.meta.url), "utf8"),
);

function decodeBase64(text: string): ArrayBuffer {
  return Uint8Array.from(Buffer.from(text, "base64")).buffer;
}

const formats = [
  { name: "f16", encode: f32ToF16, decode: f16ToF32, numCodes: 0x10000, largest: 65504 },
  { name: "bf16", encode: f32ToBf16, decode: bf16ToF32, numCodes: 0x10000, largest: 3.3895313892515355e38 },
  { name: "f8_e4m3", encode: f32ToE4m3, decode: e4m3ToF32, numCodes: 0x100, largest: 448 },
  { name: "f8_e5m2", encode: f32ToE5m2, decode: e5m2ToF32, numCodes: 0x100, largest: 57344 },
];

describe.each(formats)("$name", ({ name, encode, decode, numCodes, largest }) => {
  const { x, codes } = cases[name];

  it("casts as the reference does, ties, subnormals and overflow included", () => {
    const inputs = new Float32Array(decodeBase64(x));
    const expected = new Uint16Array(decodeBase64(codes));
    for (let i = 0; i < inputs.length; i++) {
      if (Number.isNaN(inputs[i])) expect(decode(encode(inputs[i]))).toBeNaN();
      else expect(encode(inputs[i]), `code of ${inputs[i]}`).toBe(expected[i]);
    }
  });

  it("keeps every code it can decode", () => {
    let numNaN = 0;
    for (let code = 0; code < numCodes; code++) {
      const value = decode(code);
      if (Number.isNaN(value)) numNaN++;
      else if (Number.isFinite(value)) expect(encode(value)).toBe(code);
    }
    expect(numNaN).toBeGreaterThan(0);
    expect(Math.max(...Array.from({ length: numCodes }, (_, code) => decode(code)).filter(Number.isFinite))).toBe(
      largest,
    );
  });

  it("rounds to the nearest value", () => {
    fc.assert(
      fc.property(fc.float({ min: Math.fround(-largest), max: Math.fround(largest), noNaN: true }), (value) => {
        const code = encode(value);
        const error = Math.abs(decode(code) - value);
        for (const neighbour of [code - 1, code + 1]) {
          const other = decode(neighbour & (numCodes - 1));
          if (Number.isFinite(other)) expect(error).toBeLessThanOrEqual(Math.abs(other - value));
        }
      }),
    );
  });
});

describe.each(formats.filter(({ numCodes }) => numCodes === 0x100))("$name", ({ name, decode }) => {
  it("decodes every code as the reference does", () => {
    const values = new Float32Array(decodeBase64(cases[name].table ?? ""));
    expect(values.length).toBe(256);
    for (let code = 0; code < values.length; code++) expect(decode(code)).toEqual(values[code]);
  });
});

describe("array conversions", () => {
  it("convert each element", () => {
    const values = [0, -1.5, 65504, 1e-7];
    expect([...f16FromF32(values)]).toEqual(values.map(f32ToF16));
    expect([...f32FromF16(f16FromF32(values))]).toEqual(values.map((value) => f16ToF32(f32ToF16(value))));
    expect([...bf16FromF32(values)]).toEqual(values.map(f32ToBf16));
    expect([...f32FromBf16(bf16FromF32(values))]).toEqual(values.map((value) => bf16ToF32(f32ToBf16(value))));
  });
});
