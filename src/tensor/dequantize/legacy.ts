/**
 * Blocks of 32 weights with one scale, and for the "_1" types one minimum, as ggml defines them (ggml-quants.c): Q4_0, Q4_1, Q5_0, Q5_1,
 * Q8_0. Every product and sum is rounded to float32, as there.
 */

import { readF16 } from "./readF16.ts";

const f32 = Math.fround;

function readU32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** f16 d; 16 bytes of two 4-bit codes: weight i in the low half of byte i, weight i + 16 in the high half. w = d (q - 8). */
export function dequantizeQ4_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  for (let i = 0; i < 16; i++) {
    const codes = bytes[at + 2 + i];
    out[to + i] = d * ((codes & 15) - 8);
    out[to + i + 16] = d * ((codes >> 4) - 8);
  }
}

/** f16 d, f16 m; 16 bytes of two 4-bit codes. w = d q + m. */
export function dequantizeQ4_1(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const m = readF16(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const codes = bytes[at + 4 + i];
    out[to + i] = f32(d * (codes & 15)) + m;
    out[to + i + 16] = f32(d * (codes >> 4)) + m;
  }
}

/** f16 d; u32 whose bit i is the fifth bit of weight i; 16 bytes of two low halves. w = d (q - 16). */
export function dequantizeQ5_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const high = readU32(bytes, at + 2);
  for (let i = 0; i < 16; i++) {
    const codes = bytes[at + 6 + i];
    out[to + i] = d * (((codes & 15) | (((high >>> i) & 1) << 4)) - 16);
    out[to + i + 16] = d * (((codes >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
  }
}

/** f16 d, f16 m; u32 of fifth bits; 16 bytes of two low halves. w = d q + m. */
export function dequantizeQ5_1(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const m = readF16(bytes, at + 2);
  const high = readU32(bytes, at + 4);
  for (let i = 0; i < 16; i++) {
    const codes = bytes[at + 8 + i];
    out[to + i] = f32(d * ((codes & 15) | (((high >>> i) & 1) << 4))) + m;
    out[to + i + 16] = f32(d * ((codes >> 4) | (((high >>> (i + 16)) & 1) << 4))) + m;
  }
}

/** f16 d; 32 signed bytes. w = d q. */
export function dequantizeQ8_0(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  for (let i = 0; i < 32; i++) out[to + i] = d * ((bytes[at + 2 + i] << 24) >> 24);
}
