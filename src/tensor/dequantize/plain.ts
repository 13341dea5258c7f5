/** Weights stored one by one: F32, F16, BF16, little endian at any byte offset. */

import { bf16ToF32, f16ToF32 } from "../float16.ts";

const word = new Uint32Array(1);
const wordAsFloat = new Float32Array(word.buffer);

/** One little-endian float32. */
export function dequantizeF32(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  word[0] = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24);
  out[to] = wordAsFloat[0];
}

/** One little-endian IEEE binary16. */
export function dequantizeF16(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  out[to] = f16ToF32(bytes[at] | (bytes[at + 1] << 8));
}

/** One little-endian bfloat16. */
export function dequantizeBF16(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  out[to] = bf16ToF32(bytes[at] | (bytes[at + 1] << 8));
}
