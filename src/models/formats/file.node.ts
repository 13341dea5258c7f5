/** Weights files on disk, in Node: ranges are read straight into the caller's memory, shared or not. */

import { type FileHandle, open, readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { FormatError } from "../../tensor/index.ts";
import { type ByteSource, requireRange } from "./byteSource.ts";
import type { SourceFolder } from "./sourceFolder.ts";

/** One read call moves less than 2 GiB on every system. */
const MAX_READ_BYTES = 2 ** 30;

/** A byte source over the file at `path`. Throws FormatError if it cannot be opened. */
export async function fileSource(path: string): Promise<ByteSource> {
  const label = basename(path);
  const { handle, size } = await openForReading(path);

  async function fill(offset: number, target: Uint8Array): Promise<void> {
    let done = 0;
    while (done < target.length) {
      const length = Math.min(target.length - done, MAX_READ_BYTES);
      const { bytesRead } = await handle.read(target, done, length, offset + done);
      if (bytesRead === 0) {
        throw new FormatError(
          `${label}: the file ended at byte ${offset + done} while it was read; it had ${size} bytes`,
        );
      }
      done += bytesRead;
    }
  }

  const source: ByteSource = {
    label,
    size,
    async read(offset, length) {
      requireRange(source, offset, length);
      const bytes = new Uint8Array(length);
      await fill(offset, bytes);
      return bytes;
    },
    async readInto(offset, target) {
      requireRange(source, offset, target.length);
      await fill(offset, target);
    },
    close: () => handle.close(),
  };
  return source;
}

async function openForReading(path: string): Promise<{ handle: FileHandle; size: number }> {
  let handle: FileHandle;
  try {
    handle = await open(path, "r");
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FormatError(`${path} cannot be opened: ${reason}`, { cause });
  }
  const stats = await handle.stat();
  if (!stats.isFile()) {
    await handle.close();
    throw new FormatError(`${path} is not a file`);
  }
  return { handle, size: stats.size };
}

/** The folder at `path`. Throws FormatError if it cannot be listed. */
export async function nodeFolder(path: string): Promise<SourceFolder> {
  try {
    const names = (await readdir(path)).sort();
    return { label: path, names, open: (name) => fileSource(join(path, name)) };
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FormatError(`${path} cannot be listed: ${reason}`, { cause });
  }
}

/**
 * The folder of `path`, and the file in it that `path` names; `fileName` is undefined when `path` is a folder itself. Throws FormatError if
 * there is no such path.
 */
export async function locate(path: string): Promise<{ folder: SourceFolder; fileName: string | undefined }> {
  const stats = await stat(path).catch((cause: unknown) => {
    throw new FormatError(`${path} does not exist or cannot be read`, { cause });
  });
  if (stats.isDirectory()) return { folder: await nodeFolder(path), fileName: undefined };
  return { folder: await nodeFolder(dirname(path)), fileName: basename(path) };
}
