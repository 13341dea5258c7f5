/** Reads the f16 scales that blocks of every family hold. */

import { f16ToF32 } from "../float16.ts";

/** The little-endian f16 at `bytes[at]`, wherever it lies. */
export function readF16(bytes: Uint8Array, at: number): number {
  return f16ToF32(bytes[at] | (bytes[at + 1] << 8));
}
