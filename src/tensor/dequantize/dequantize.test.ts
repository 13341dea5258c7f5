import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { f32ToBf16, f32ToF16 } from "../float16.ts";
import { type WeightType, weightBlock, weightBytes, weightTypes } from "../weightTypes.ts";
import { blockDequantizer, dequantize } from "./index.ts";

/** Base64 of three blocks with random codes (the first with subnormal scales), and their values by the `gguf` package. */
interface BlockCase {
  blockBytes: number;
  blockSize: number;
  bytes: string;
  values: string;
}

const cases: Record<string, BlockCase> = JSON.parse(
  readFileSync(new URL("../../../test/fixtures/formats/dequantize.json", import.meta.url), "utf8"),
);
const blockTypes = weightTypes.filter((type) => weightBlock(type).size > 1);

function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(Buffer.from(text, "base64"));
}

describe.each(blockTypes)("%s", (type) => {
  const { blockBytes, blockSize, bytes, values } = cases[type];

  it("has the block that the reference has", () => {
    expect(weightBlock(type)).toEqual({ size: blockSize, numBytes: blockBytes });
  });

  it("gives the values of the reference, bit for bit", () => {
    expect(dequantize(type, decodeBase64(bytes), 3 * blockSize)).toEqual(new Float32Array(decodeBase64(values).buffer));
  });

  it("expands every block alone as among others", () => {
    const all = dequantize(type, decodeBase64(bytes), 3 * blockSize);
    const out = new Float32Array(blockSize + 2).fill(7);
    blockDequantizer(type)(decodeBase64(bytes), 2 * blockBytes, out, 1);
    expect(out.subarray(1, blockSize + 1)).toEqual(all.subarray(2 * blockSize));
    expect([out[0], out[blockSize + 1]]).toEqual([7, 7]);
  });
});

describe("plain types", () => {
  it("reads little-endian numbers at odd offsets", () => {
    const float = fc.float({ noNaN: true, noDefaultInfinity: true, min: Math.fround(-6e4), max: Math.fround(6e4) });
    const codes: [WeightType, (value: number) => number][] = [
      ["F16", f32ToF16],
      ["BF16", f32ToBf16],
    ];
    fc.assert(
      fc.property(fc.array(float, { minLength: 1, maxLength: 8 }), (values) => {
        const bytes = new Uint8Array(1 + 4 * values.length).subarray(1);
        const view = new DataView(bytes.buffer, 1);
        for (const [i, value] of values.entries()) view.setFloat32(4 * i, value, true);
        expect([...dequantize("F32", bytes, values.length)]).toEqual(values);
        for (const [type, encode] of codes) {
          for (const [i, value] of values.entries()) view.setUint16(2 * i, encode(value), true);
          const got = dequantize(type, bytes.subarray(0, 2 * values.length), values.length);
          for (const [i, value] of got.entries()) expect(encode(value)).toBe(encode(values[i]));
        }
      }),
    );
  });
});

describe("sizes", () => {
  it("counts whole blocks", () => {
    expect(weightBytes("Q4_K", 512)).toBe(288);
    expect(weightBytes("F32", 3)).toBe(12);
    expect(() => weightBytes("Q8_0", 33)).toThrow(
      "numElements = 33 is not a whole number of Q8_0 blocks of 32 weights",
    );
  });

  it("refuses bytes of another length", () => {
    expect(() => dequantize("Q8_0", new Uint8Array(33), 32)).toThrow(
      "bytes must have length 34 for 32 weights of Q8_0, got 33",
    );
  });
});
