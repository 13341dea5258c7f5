/**
 * Copies whole cache pages, in the keys and values of every layer: copy-on-write before an append to a shared page.
 * Which pages to copy is the cache's decision.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { checkPositive, type DeviceTensor } from "../elementwise/rows.ts";

/** Pages of one layer's keys or values. Page p is the `pageBytes` bytes from `pointer` + p * pageBytes. */
export interface PageBuffer {
  /** Byte offset in the device's memory, a multiple of 4. */
  readonly pointer: number;
  /** A multiple of 4. */
  readonly pageBytes: number;
  readonly numPages: number;
}

/**
 * `copies` is a device array [at least numCopies, 2] i32 of (from, to) pages and `copiesOnHost` the same values, which are what is checked. No page may
 * be written twice, nor be both written and read: the order of the copies must not matter.
 */
export interface CopyPagesArgs {
  readonly copies: DeviceTensor;
  readonly copiesOnHost: ArrayLike<number>;
  readonly numCopies: number;
  readonly buffers: readonly PageBuffer[];
}

/** Throws ShapeError or ArgumentError naming the argument or the copy that does not fit. */
export function checkCopyPages(args: CopyPagesArgs): void {
  const { copies, copiesOnHost, numCopies, buffers } = args;
  if (!Number.isInteger(numCopies) || numCopies < 0) {
    throw new ArgumentError(`numCopies must be a whole number of at least 0, got ${numCopies}`);
  }
  if (copies.type !== "i32") throw new ArgumentError(`copies must be of type i32, got ${copies.type}`);
  if (copies.shape.length !== 2 || copies.shape[0] < numCopies || copies.shape[1] !== 2) {
    throw new ShapeError(`copies must have shape [at least ${numCopies}, 2], got [${copies.shape.join(", ")}]`);
  }
  if (copiesOnHost.length < 2 * numCopies) {
    throw new ShapeError(`copiesOnHost must have at least ${2 * numCopies} entries, got ${copiesOnHost.length}`);
  }
  let numPages = Infinity;
  buffers.forEach((buffer, index) => {
    checkPositive(`buffers[${index}].numPages`, buffer.numPages);
    checkWords(`buffers[${index}].pageBytes`, buffer.pageBytes);
    checkWords(`buffers[${index}].pointer`, buffer.pointer);
    numPages = Math.min(numPages, buffer.numPages);
  });
  const read = new Set<number>();
  const written = new Set<number>();
  for (let copy = 0; copy < numCopies; copy++) {
    const from = copiesOnHost[2 * copy];
    const to = copiesOnHost[2 * copy + 1];
    checkPage(`copies[${copy}] reads page`, from, numPages);
    checkPage(`copies[${copy}] writes page`, to, numPages);
    if (written.has(to)) throw new ArgumentError(`copies[${copy}] writes page ${to}, which another copy writes too`);
    read.add(from);
    written.add(to);
  }
  for (const page of read) {
    if (written.has(page))
      throw new ArgumentError(`copies both read and write page ${page}; their order must not matter`);
  }
}

function checkPage(what: string, page: number, numPages: number): void {
  if (Number.isInteger(page) && page >= 0 && page < numPages) return;
  throw new ArgumentError(`${what} ${page}, which is not a page: the pool has ${numPages}`);
}

function checkWords(name: string, numBytes: number): void {
  if (Number.isInteger(numBytes) && numBytes >= 0 && numBytes % 4 === 0) return;
  throw new ArgumentError(`${name} must be a multiple of 4 bytes, got ${numBytes}`);
}
