/** 4-bit codes into a table of sixteen unevenly spaced levels, as ggml defines them (ggml-quants.c): IQ4_NL and IQ4_XS. */

import { readF16 } from "./readF16.ts";

const f32 = Math.fround;

/** The sixteen levels of IQ4_NL and IQ4_XS, by code. */
export const iq4Levels: readonly number[] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** f16 d; 16 bytes of two codes: weight i in the low half of byte i, weight i + 16 in the high half. w = d level. */
export function dequantizeIQ4_NL(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  for (let i = 0; i < 16; i++) {
    const codes = bytes[at + 2 + i];
    out[to + i] = d * iq4Levels[codes & 15];
    out[to + i + 16] = d * iq4Levels[codes >> 4];
  }
}

/**
 * f16 d; u16 of two high scale bits for each sub-block of 32; 4 bytes of low scale halves; 128 bytes of codes, 16 for each sub-block
 * (order as in IQ4_NL). w = d (scale - 32) level.
 */
export function dequantizeIQ4_XS(bytes: Uint8Array, at: number, out: Float32Array, to: number): void {
  const d = readF16(bytes, at);
  const highs = bytes[at + 2] | (bytes[at + 3] << 8);
  for (let s = 0; s < 8; s++) {
    const low = (bytes[at + 4 + (s >> 1)] >> (4 * (s & 1))) & 15;
    const high = (highs >> (2 * s)) & 3;
    const step = f32(d * ((low | (high << 4)) - 32));
    for (let i = 0; i < 16; i++) {
      const codes = bytes[at + 8 + 16 * s + i];
      out[to + 32 * s + i] = step * iq4Levels[codes & 15];
      out[to + 32 * s + i + 16] = step * iq4Levels[codes >> 4];
    }
  }
}
