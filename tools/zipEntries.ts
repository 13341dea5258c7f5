/**
 * Reads entries out of a zip file (a Python wheel is one) held in memory: enough for stored and deflated entries below 4 GiB,
 * no encryption, no writing. Format: PKWARE's APPNOTE.
 */

import { inflateRawSync } from "node:zlib";

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;

/** The content of the entry of `zip` whose name ends with `suffix`. Throws when there is none, or it is packed in an unknown way. */
export function readZipEntry(zip: Buffer, suffix: string): Buffer {
  // The end record lies before a comment of at most 65,535 bytes.
  let end = zip.length - 22;
  while (end >= 0 && zip.readUInt32LE(end) !== END_OF_DIRECTORY) end--;
  if (end < 0) throw new Error("not a zip file: it has no end-of-directory record");
  let at = zip.readUInt32LE(end + 16);
  const names: string[] = [];
  for (let left = zip.readUInt16LE(end + 10); left > 0; left--) {
    if (zip.readUInt32LE(at) !== DIRECTORY_ENTRY) throw new Error(`zip directory entry expected at byte ${at}`);
    const method = zip.readUInt16LE(at + 10);
    const packedBytes = zip.readUInt32LE(at + 20);
    const nameBytes = zip.readUInt16LE(at + 28);
    const local = zip.readUInt32LE(at + 42);
    const name = zip.toString("utf8", at + 46, at + 46 + nameBytes);
    if (name.endsWith(suffix)) {
      const start = local + 30 + zip.readUInt16LE(local + 26) + zip.readUInt16LE(local + 28);
      const packed = zip.subarray(start, start + packedBytes);
      if (method === 0) return packed;
      if (method === 8) return inflateRawSync(packed);
      throw new Error(`zip entry ${name} has compression method ${method}; only 0 (stored) and 8 (deflated) are read`);
    }
    names.push(name);
    at += 46 + nameBytes + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  throw new Error(`the zip file has no entry ending in ${suffix}; it has ${names.join(", ")}`);
}
