/**
 * FlashMLA's cache row of 8-bit latents, on the host: e4m3 codes of the latent, one f32 scale for every 128 of them, then the rope key in
 * bf16; 656 bytes for a DeepSeek token. The codes and the choice of scales are those of the storage type "tiled".
 */
import { decodeRows, encodeRows, type PageStorage, rowScales } from "../../ops/attention/index.ts";
import { ArgumentError, bf16FromF32, f32FromBf16 } from "../../tensor/index.ts";
import type { MlaDims } from "./dims.ts";

/** Storage of the latent part of the row. */
export const fp8LatentStorage = { kind: "tiled", tile: 128 } as const satisfies PageStorage;

/** Where the parts of a row lie, in bytes: the codes at 0. */
export interface Fp8TokenLayout {
  readonly scalesAt: number;
  readonly ropeAt: number;
  readonly numBytes: number;
}

/** The row of a token. Throws ArgumentError if its scales would not begin at a multiple of 4 bytes, or a row not end at one. */
export function fp8TokenLayout({
  kvLoraRank,
  qkRopeHeadDim,
}: Pick<MlaDims, "kvLoraRank" | "qkRopeHeadDim">): Fp8TokenLayout {
  if (kvLoraRank % 4 !== 0)
    throw new ArgumentError(`kvLoraRank must be a multiple of 4 for 8-bit rows, got ${kvLoraRank}`);
  if (qkRopeHeadDim % 2 !== 0) {
    throw new ArgumentError(`qkRopeHeadDim must be even for 8-bit rows, got ${qkRopeHeadDim}`);
  }
  const ropeAt = kvLoraRank + 4 * rowScales(fp8LatentStorage, kvLoraRank);
  return { scalesAt: kvLoraRank, ropeAt, numBytes: ropeAt + 2 * qkRopeHeadDim };
}

type TokenShape = Pick<MlaDims, "kvLoraRank" | "qkRopeHeadDim">;

/** Rows [tokens, kvLoraRank + qkRopeHeadDim] as bytes [tokens, numBytes]. Throws ArgumentError for a length of no whole rows. */
export function encodeFp8Tokens(shape: TokenShape, values: ArrayLike<number>): Uint8Array {
  const { kvLoraRank } = shape;
  const { scalesAt, ropeAt, numBytes } = fp8TokenLayout(shape);
  const width = kvLoraRank + shape.qkRopeHeadDim;
  const numTokens = countTokens("values", values.length, width);
  const bytes = new Uint8Array(numTokens * numBytes);
  for (let token = 0; token < numTokens; token++) {
    const row = Float32Array.from({ length: width }, (_, d) => values[token * width + d]);
    const { units, scales } = encodeRows(fp8LatentStorage, row.subarray(0, kvLoraRank), kvLoraRank);
    const rope = bf16FromF32(row.subarray(kvLoraRank));
    for (const [at, part] of [
      [0, units],
      [scalesAt, scales],
      [ropeAt, rope],
    ] as const) {
      bytes.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), token * numBytes + at);
    }
  }
  return bytes;
}

/** The numbers of stored rows, [tokens, kvLoraRank + qkRopeHeadDim]. Throws ArgumentError for a length of no whole rows. */
export function decodeFp8Tokens(shape: TokenShape, bytes: Uint8Array): Float32Array {
  const { kvLoraRank, qkRopeHeadDim } = shape;
  const { scalesAt, ropeAt, numBytes } = fp8TokenLayout(shape);
  const width = kvLoraRank + qkRopeHeadDim;
  const numTokens = countTokens("bytes", bytes.length, numBytes);
  const values = new Float32Array(numTokens * width);
  for (let token = 0; token < numTokens; token++) {
    // A copy, because the views of wider elements need an aligned start.
    const row = bytes.slice(token * numBytes, (token + 1) * numBytes);
    const scales = new Float32Array(row.buffer, scalesAt, (ropeAt - scalesAt) / 4);
    const latent = decodeRows(fp8LatentStorage, { units: row.subarray(0, kvLoraRank), scales }, kvLoraRank);
    values.set(latent, token * width);
    values.set(f32FromBf16(new Uint16Array(row.buffer, ropeAt, qkRopeHeadDim)), token * width + kvLoraRank);
  }
  return values;
}

function countTokens(name: string, length: number, rowLength: number): number {
  if (length % rowLength === 0) return length / rowLength;
  throw new ArgumentError(`${name} must be whole rows of ${rowLength}, got ${length} elements`);
}
