/** Golden cases of number formats: GGUF blocks to numbers, casts from float32, the 8-bit floats. All run on the host, whatever the target. */

import type { ElementStorage } from "../src/ops/attention/storage.ts";
import {
  bf16ToF32,
  dequantize,
  e4m3ToF32,
  e5m2ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToE4m3,
  f32ToE5m2,
  f32ToF16,
  type WeightType,
  weightTypes,
} from "../src/tensor/index.ts";
import type { GoldenCase, GoldenTarget } from "./case.ts";
import { decodeOn, encodeOn } from "./storedRows.ts";

type Outputs = Record<string, ArrayLike<number>>;

/** Input `bytes`, with each scale field overwritten by a float16, little endian, as the notes of these cases say. */
export async function runDequantize(golden: GoldenCase): Promise<Outputs> {
  const type = weightTypes.find((known) => known === golden.file.params.type);
  if (!type) throw new Error(`weight type ${JSON.stringify(golden.file.params.type)} is unknown`);
  const bytes = Uint8Array.from(golden.input("bytes"));
  const scales = golden.input("scales");
  const fields = golden.file.params.f16_field_offsets;
  if (!Array.isArray(fields)) throw new Error("params.f16_field_offsets must be a list");
  const [numBlocks, blockBytes] = golden.shape("bytes");
  for (let block = 0; block < numBlocks; block++) {
    for (const [field, offset] of fields.entries()) {
      const code = f32ToF16(scales[block * fields.length + field]);
      bytes[block * blockBytes + offset] = code & 0xff;
      bytes[block * blockBytes + offset + 1] = code >> 8;
    }
  }
  const numElements = numBlocks * golden.requiredNumber("block_elements");
  return { bytes, values: dequantize(type satisfies WeightType, bytes, numElements) };
}

interface Format {
  /** The storage type of a cache that keeps such codes. */
  readonly storage: ElementStorage;
  readonly encode: (value: number) => number;
  readonly decode: (code: number) => number;
  /** The code of a plain cast where the value overflows: caches saturate. Undefined where it does not overflow. */
  readonly overflow?: (value: number) => number | undefined;
}

const formats: Readonly<Record<string, Format>> = {
  f16: {
    storage: "f16",
    encode: f32ToF16,
    decode: f16ToF32,
    overflow: (x) => (Math.abs(x) >= 65520 ? signed(x, 0x7c00, 0x8000) : undefined),
  },
  bf16: { storage: "bf16", encode: f32ToBf16, decode: bf16ToF32 },
  f8_e4m3: {
    storage: "f8e4m3",
    encode: f32ToE4m3,
    decode: e4m3ToF32,
    overflow: (x) => (Math.abs(x) > 464 ? signed(x, 0x7f, 0x80) : undefined),
  },
  f8_e5m2: {
    storage: "f8e5m2",
    encode: f32ToE5m2,
    decode: e5m2ToF32,
    overflow: (x) => (Math.abs(x) >= 61440 ? signed(x, 0x7c, 0x80) : undefined),
  },
};

/** Every code from 0 to 255: by the conversion of the host, and as a row of a cache on a device. */
export async function runFp8Decode(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const { decode, storage } = formatOf(golden);
  const codes = Uint8Array.from({ length: 256 }, (_, code) => code);
  if (target.name === "reference") return { values: Array.from(codes, decode) };
  return { values: await decodeOn(target, storage, { units: codes, scales: new Float32Array(0) }, 256) };
}

function formatOf(golden: GoldenCase): Format {
  const format = formats[String(golden.file.params.dtype)];
  if (!format) throw new Error(`dtype ${JSON.stringify(golden.file.params.dtype)} is unknown`);
  return format;
}

function signed(x: number, code: number, signBit: number): number {
  return x < 0 ? code | signBit : code;
}

/**
 * By the conversion of the host, and by the append of a device. The float32 inputs are stored as bit patterns among the outputs. Of a NaN
 * only that it is one counts.
 */
export async function runCast(golden: GoldenCase, target: GoldenTarget): Promise<Outputs> {
  const { storage, encode, decode, overflow } = formatOf(golden);
  const bits = Uint32Array.from(golden.expected("x"));
  const x = new Float32Array(bits.buffer);
  const stored = target.name === "reference" ? undefined : (await encodeOn(target, storage, x, x.length)).units;
  const codes = stored ?? Array.from(x, encode);
  const codesAs = (output: string, codeOf: (value: number, code: number) => number): number[] => {
    const expected = golden.expected(output);
    return Array.from(x, (value, i) => {
      const code = codeOf(value, codes[i]);
      const bothNaN = Number.isNaN(value) && Number.isNaN(decode(code)) && Number.isNaN(decode(expected[i]));
      return bothNaN ? expected[i] : code;
    });
  };
  const plain = codesAs("codes", (value, code) => overflow?.(value) ?? code);
  const outputs: Outputs = { x: bits, codes: plain, values: plain.map(decode) };
  if ("codes_saturated" in golden.file.outputs) outputs.codes_saturated = codesAs("codes_saturated", (_, code) => code);
  return outputs;
}
