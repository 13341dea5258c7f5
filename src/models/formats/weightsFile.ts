/** What every weights format is read into: named tensors that lie somewhere in a byte source. No weight is read until someone asks. */

import { FormatError, formatShape, numElements, type Shape, type WeightType, weightBlock } from "../../tensor/index.ts";
import type { ByteSource } from "./byteSource.ts";

/** Where one tensor lies. */
export interface TensorEntry {
  /** The name in the file. */
  readonly name: string;
  /** Row-major, outermost dimension first. */
  readonly shape: Shape;
  readonly type: WeightType;
  readonly source: ByteSource;
  /** First byte in `source`. */
  readonly byteOffset: number;
  readonly numBytes: number;
}

/** An opened model: its metadata and its tensors by name. */
export interface WeightsFile {
  readonly format: "gguf" | "safetensors" | "llama2c";
  /** What errors call it. */
  readonly label: string;
  /** Key-value pairs of the header: GGUF metadata, or safetensors' `__metadata__`. Arrays are typed arrays, plain arrays or StringArray. */
  readonly metadata: ReadonlyMap<string, unknown>;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Bytes of all files. */
  readonly numBytes: number;
  /** Closes the sources. */
  close(): Promise<void>;
}

/** All bytes of a tensor. Throws FormatError if the file ends before them. */
export function readTensor(entry: TensorEntry): Promise<Uint8Array<ArrayBuffer>> {
  return entry.source.read(entry.byteOffset, entry.numBytes);
}

/**
 * Rows `begin` to `end` of a tensor's outermost dimension as an entry of its own: fused matrices are split this way without copying.
 * Rows are whole blocks, so the slice is exact for every type.
 */
export function sliceRows(entry: TensorEntry, begin: number, end: number): TensorEntry {
  const [rows, ...rest] = entry.shape;
  const rowBytes = entry.numBytes / rows;
  return {
    ...entry,
    shape: [end - begin, ...rest],
    byteOffset: entry.byteOffset + begin * rowBytes,
    numBytes: (end - begin) * rowBytes,
  };
}

/** Bytes that a tensor of `shape` and `type` takes. Throws FormatError naming it if a row is not whole blocks or the count is absurd. */
export function tensorBytes(where: string, shape: Shape, type: WeightType): number {
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 1) {
      throw new FormatError(`${where} has shape ${formatShape(shape)}: every dimension must be a positive integer`);
    }
  }
  const { size, numBytes } = weightBlock(type);
  const row = shape.length === 0 ? 1 : shape[shape.length - 1];
  if (row % size !== 0) {
    throw new FormatError(`${where} has rows of ${row} weights, but ${type} is stored in blocks of ${size}`);
  }
  const total = (numElements(shape) / size) * numBytes;
  if (!Number.isSafeInteger(total))
    throw new FormatError(`${where} has shape ${formatShape(shape)}, more than a file can hold`);
  return total;
}

/** Throws FormatError naming the tensor if one runs past the end of its source or shares bytes with another. */
export function requireDisjoint(entries: Iterable<TensorEntry>): void {
  const bySource = new Map<ByteSource, TensorEntry[]>();
  for (const entry of entries) {
    const end = entry.byteOffset + entry.numBytes;
    if (end > entry.source.size) {
      throw new FormatError(
        `${entry.source.label}: tensor ${entry.name} takes bytes ${entry.byteOffset} to ${end}, but the file has ${entry.source.size}; ` +
          "it may be truncated",
      );
    }
    const list = bySource.get(entry.source);
    if (list === undefined) bySource.set(entry.source, [entry]);
    else list.push(entry);
  }
  for (const [source, list] of bySource) {
    list.sort((a, b) => a.byteOffset - b.byteOffset);
    for (let i = 1; i < list.length; i++) {
      const end = list[i - 1].byteOffset + list[i - 1].numBytes;
      if (list[i].byteOffset < end) {
        throw new FormatError(
          `${source.label}: tensor ${list[i].name} begins at byte ${list[i].byteOffset}, inside tensor ${list[i - 1].name}, which ends at ${end}`,
        );
      }
    }
  }
}
