/**
 * Super-blocks of 256 weights whose sub-blocks of 16 or 32 carry small integer scales, as ggml defines them (ggml-quants.c): Q2_K to Q6_K.
 * Every product and sum is rounded to float32, as there.
 */

import { readF16 } from "./readF16.ts";

const f32 = Math.fround;

/**
 * 16 bytes of (4-bit scale, 4-bit minimum); 64 bytes of 2-bit codes; f16 d, f16 dmin. Sub-blocks of 16: w = d scale q - dmin minimum.
 * The codes of weights 128 h + 32 j + l (l < 32) are bits 2 j of byte 32 h + l.
 */
export function dequantizeQ2_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at + 80);
  const dmin = readF16(bytes, at + 82);
  for (let i = 0; i < 256; i++) {
    const scales = bytes[at + (i >> 4)];
    const codes = bytes[at + 16 + ((i >> 7) << 5) + (i & 31)];
    const code = (codes >> (((i >> 5) & 3) << 1)) & 3;
    out[to + i] = f32(f32(d * (scales & 15)) * code) - f32(dmin * (scales >> 4));
  }
}

/** Signed 6-bit scale of sub-block `s` (0 to 15) of a Q3_K block: low nibbles in bytes 0-7, two high bits of each in bytes 8-11. */
function q3KScale(bytes: Uint8Array, scales: number, s: number): number {
  const low = s < 8 ? bytes[scales + s] & 15 : bytes[scales + s - 8] >> 4;
  const high = (bytes[scales + 8 + (s & 3)] >> ((s >> 2) << 1)) & 3;
  return (low | (high << 4)) - 32;
}

/**
 * 32 bytes of third bits; 64 bytes of 2-bit codes (order as in Q2_K); 12 bytes of 6-bit scales; f16 d. Sub-blocks of 16:
 * w = d scale (q - 4), where the third bit of weight i is bit i >> 5 of byte i & 31.
 */
export function dequantizeQ3_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at + 108);
  for (let i = 0; i < 256; i++) {
    const codes = bytes[at + 32 + ((i >> 7) << 5) + (i & 31)];
    const low = (codes >> (((i >> 5) & 3) << 1)) & 3;
    const high = (bytes[at + (i & 31)] >> (i >> 5)) & 1;
    out[to + i] = f32(d * q3KScale(bytes, at + 96, i >> 4)) * (low + 4 * high - 4);
  }
}

/** 6-bit scale and minimum of sub-block `s` (0 to 7) of the 12 packed bytes that Q4_K and Q5_K share. */
function scaleAndMinimum(bytes: Uint8Array, scales: number, s: number): { scale: number; minimum: number } {
  if (s < 4) return { scale: bytes[scales + s] & 63, minimum: bytes[scales + s + 4] & 63 };
  return {
    scale: (bytes[scales + s + 4] & 15) | ((bytes[scales + s - 4] >> 6) << 4),
    minimum: (bytes[scales + s + 4] >> 4) | ((bytes[scales + s] >> 6) << 4),
  };
}

/**
 * f16 d, f16 dmin; 12 bytes of 6-bit scales and minima; 128 bytes of two 4-bit codes: byte 32 p + l holds weights 64 p + l (low half) and
 * 64 p + 32 + l. Sub-blocks of 32: w = d scale q - dmin minimum.
 */
export function dequantizeQ4_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const dmin = readF16(bytes, at + 2);
  for (let s = 0; s < 8; s++) {
    const { scale, minimum } = scaleAndMinimum(bytes, at + 4, s);
    const step = f32(d * scale);
    const offset = f32(dmin * minimum);
    for (let l = 0; l < 32; l++) {
      const codes = bytes[at + 16 + ((s >> 1) << 5) + l];
      out[to + 32 * s + l] = f32(step * (s & 1 ? codes >> 4 : codes & 15)) - offset;
    }
  }
}

/** As Q4_K with 32 bytes of fifth bits before the codes: bit s of byte l belongs to weight 32 s + l. */
export function dequantizeQ5_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const dmin = readF16(bytes, at + 2);
  for (let s = 0; s < 8; s++) {
    const { scale, minimum } = scaleAndMinimum(bytes, at + 4, s);
    const step = f32(d * scale);
    const offset = f32(dmin * minimum);
    for (let l = 0; l < 32; l++) {
      const codes = bytes[at + 48 + ((s >> 1) << 5) + l];
      const high = (bytes[at + 16 + l] >> s) & 1;
      out[to + 32 * s + l] = f32(step * ((s & 1 ? codes >> 4 : codes & 15) + 16 * high)) - offset;
    }
  }
}

/**
 * 128 bytes of low halves; 64 bytes of two high bits; 16 signed scales; f16 d. Sub-blocks of 16: w = d scale (q - 32). Weight
 * 128 h + 32 j + l (l < 32): half j >> 1 of byte 64 h + 32 (j & 1) + l, bits 2 j of high byte 32 h + l.
 */
export function dequantizeQ6_K(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at + 208);
  for (let i = 0; i < 256; i++) {
    const half = i >> 7;
    const quarter = (i >> 5) & 3;
    const lows = bytes[at + 64 * half + 32 * (quarter & 1) + (i & 31)];
    const low = quarter < 2 ? lows & 15 : lows >> 4;
    const high = (bytes[at + 128 + 32 * half + (i & 31)] >> (2 * quarter)) & 3;
    const scale = (bytes[at + 192 + (i >> 4)] << 24) >> 24;
    out[to + i] = f32(d * scale) * (low + 16 * high - 32);
  }
}
