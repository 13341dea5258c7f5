/** Where the bytes of a weights file come from: ranges of a file, a Blob, or plain memory. The readers above never hold a whole file. */

import { ArgumentError, FormatError } from "../../tensor/index.ts";

/** Random access to an immutable run of bytes. Offsets are plain numbers, so files may be larger than 4 GiB. */
export interface ByteSource {
  /** What errors call it: a file's name. */
  readonly label: string;
  /** Length in bytes. */
  readonly size: number;
  /** `length` bytes from `offset`. Throws FormatError naming the range if it runs past the end. */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Fills `target`, which may be a view of shared memory, from `offset`. Throws FormatError like `read`. */
  readInto(offset: number, target: Uint8Array): Promise<void>;
  /** Frees what the source holds open. Reading afterwards is an error. */
  close(): Promise<void>;
}

/** Throws unless [offset, offset + length) lies in the source: ArgumentError for a range that makes no sense, FormatError past the end. */
export function requireRange(source: ByteSource, offset: number, length: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0) {
    throw new ArgumentError(`offset must be an integer of at least 0, got ${offset}`);
  }
  if (!Number.isSafeInteger(length) || length < 0) {
    throw new ArgumentError(`length must be an integer of at least 0, got ${length}`);
  }
  if (offset + length > source.size) {
    throw new FormatError(
      `${source.label}: bytes ${offset} to ${offset + length} were wanted, but the file has ${source.size}; it may be truncated`,
    );
  }
}

/** A source over bytes in memory, which are not copied. */
export function bytesSource(label: string, bytes: Uint8Array): ByteSource {
  const source: ByteSource = {
    label,
    size: bytes.length,
    async read(offset, length) {
      requireRange(source, offset, length);
      return bytes.slice(offset, offset + length);
    },
    async readInto(offset, target) {
      requireRange(source, offset, target.length);
      target.set(bytes.subarray(offset, offset + target.length));
    },
    async close() {},
  };
  return source;
}

/** Closes the sources of a model in several files. */
export async function closeAll(sources: readonly ByteSource[]): Promise<void> {
  await Promise.all(sources.map((source) => source.close()));
}
