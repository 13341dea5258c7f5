/** Weights files that a page was given: a Blob, or the Files of an input or a dropped folder. Nothing is read but what is asked for. */

import { FormatError } from "../../tensor/index.ts";
import { type ByteSource, requireRange } from "./byteSource.ts";
import type { SourceFolder } from "./sourceFolder.ts";

/** Large targets are filled in pieces, so that the copy which a Blob makes stays small. */
const PIECE_BYTES = 16 * 2 ** 20;

/** A byte source over a Blob or File. */
export function blobSource(blob: Blob, label: string): ByteSource {
  const source: ByteSource = {
    label,
    size: blob.size,
    async read(offset, length) {
      requireRange(source, offset, length);
      return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
    },
    async readInto(offset, target) {
      requireRange(source, offset, target.length);
      for (let done = 0; done < target.length; done += PIECE_BYTES) {
        const end = Math.min(done + PIECE_BYTES, target.length);
        target.set(new Uint8Array(await blob.slice(offset + done, offset + end).arrayBuffer()), done);
      }
    },
    async close() {},
  };
  return source;
}

/** A folder of Files, by their names without a path. */
export function filesFolder(files: Iterable<File>, label = "the given files"): SourceFolder {
  const byName = new Map<string, File>();
  for (const file of files) byName.set(file.name, file);
  return {
    label,
    names: [...byName.keys()].sort(),
    async open(name) {
      const file = byName.get(name);
      if (file === undefined) throw new FormatError(`${label}: there is no file ${name}`);
      return blobSource(file, name);
    },
  };
}
