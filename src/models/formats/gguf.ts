/**
 * GGUF files, versions 2 and 3, one or split into several: header, metadata and the table of tensors. It reads only the header; the weights
 * stay where they are until someone asks for them. Format: ggml's docs/gguf.md.
 */

import { FormatError, formatShape, type WeightType } from "../../tensor/index.ts";
import { ByteCursor } from "./byteCursor.ts";
import { type ByteSource, closeAll } from "./byteSource.ts";
import { type GgufValue, readString, readValue } from "./ggufValues.ts";
import { openNamed, type SourceFolder } from "./sourceFolder.ts";
import { requireDisjoint, type TensorEntry, tensorBytes, type WeightsFile } from "./weightsFile.ts";

const MAGIC = 0x46554747; // "GGUF", little endian
const MAX_DIMENSIONS = 4;
const DEFAULT_ALIGNMENT = 32;

/** Tensor type numbers of ggml that Kvasir reads. */
export const ggufTensorTypes: ReadonlyMap<number, WeightType> = new Map([
  [0, "F32"],
  [1, "F16"],
  [2, "Q4_0"],
  [3, "Q4_1"],
  [6, "Q5_0"],
  [7, "Q5_1"],
  [8, "Q8_0"],
  [10, "Q2_K"],
  [11, "Q3_K"],
  [12, "Q4_K"],
  [13, "Q5_K"],
  [14, "Q6_K"],
  [20, "IQ4_NL"],
  [23, "IQ4_XS"],
  [30, "BF16"],
]);

/** Those it does not, so that an error can name them. */
const UNSUPPORTED_TYPES: ReadonlyMap<number, string> = new Map([
  [9, "Q8_1"],
  [15, "Q8_K"],
  [16, "IQ2_XXS"],
  [17, "IQ2_XS"],
  [18, "IQ3_XXS"],
  [19, "IQ1_S"],
  [21, "IQ3_S"],
  [22, "IQ2_S"],
  [24, "I8"],
  [25, "I16"],
  [26, "I32"],
  [27, "I64"],
  [28, "F64"],
  [29, "IQ1_M"],
  [34, "TQ1_0"],
  [35, "TQ2_0"],
  [39, "MXFP4"],
  [40, "NVFP4"],
]);

interface GgufPart {
  readonly metadata: Map<string, GgufValue>;
  readonly tensors: readonly TensorEntry[];
}

/**
 * Opens a GGUF file. For one of several parts (`name-00001-of-00003.gguf`) the others are opened from `folder`. Throws FormatError that names
 * the file and the key or tensor at fault.
 */
export async function openGguf(source: ByteSource, folder?: SourceFolder): Promise<WeightsFile> {
  const sources = [source];
  try {
    const first = await readPart(source);
    const parts = [first];
    for (const name of partNames(source.label, first.metadata)) {
      if (folder === undefined) {
        throw new FormatError(
          `${source.label} is one part of several, but the folder that holds ${name} was not given`,
        );
      }
      const other = await openNamed(folder, name, source.label);
      sources.push(other);
      parts.push(await readPart(other));
    }
    return {
      format: "gguf",
      label: source.label,
      metadata: first.metadata,
      tensors: joinTensors(source.label, first.metadata, parts),
      numBytes: sources.reduce((sum, { size }) => sum + size, 0),
      close: () => closeAll(sources),
    };
  } catch (error) {
    await closeAll(sources);
    throw error;
  }
}

async function readPart(source: ByteSource): Promise<GgufPart> {
  const { label } = source;
  const cursor = new ByteCursor(source);
  await cursor.need(24);
  const magic = cursor.u32();
  if (magic !== MAGIC)
    throw new FormatError(`${label} begins with 0x${magic.toString(16)}: a GGUF file begins with "GGUF"`);
  const version = cursor.u32();
  if (version === 0x02000000 || version === 0x03000000) {
    throw new FormatError(`${label} is a big-endian GGUF file: only little-endian ones are supported`);
  }
  if (version !== 2 && version !== 3)
    throw new FormatError(`${label} has GGUF version ${version}: versions 2 and 3 are supported`);
  const numTensors = cursor.u64();
  const numPairs = cursor.u64();
  // A pair takes at least 13 bytes (empty key, type, one byte), a tensor at least 24: larger counts cannot be true.
  if (numPairs * 13 > cursor.numLeft || numTensors * 24 > cursor.numLeft) {
    throw new FormatError(
      `${label} is said to have ${numPairs} metadata entries and ${numTensors} tensors, more than its ${source.size} bytes hold`,
    );
  }
  const metadata = await readMetadata(cursor, numPairs);
  return { metadata, tensors: await readTensorTable(cursor, metadata, numTensors) };
}

async function readMetadata(cursor: ByteCursor, numPairs: number): Promise<Map<string, GgufValue>> {
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < numPairs; i++) {
    const key = await readString(cursor, `the key of metadata entry ${i}`);
    if (key === "") throw new FormatError(`${cursor.source.label}: the key of metadata entry ${i} is empty`);
    if (metadata.has(key)) throw new FormatError(`${cursor.source.label}: metadata ${key} appears twice`);
    await cursor.need(4);
    metadata.set(key, await readValue(cursor, key, cursor.u32()));
  }
  return metadata;
}

async function readTensorTable(
  cursor: ByteCursor,
  metadata: ReadonlyMap<string, GgufValue>,
  numTensors: number,
): Promise<TensorEntry[]> {
  const { source } = cursor;
  const alignment = readAlignment(source.label, metadata);
  const tensors: TensorEntry[] = [];
  for (let i = 0; i < numTensors; i++) tensors.push(await readTensorEntry(cursor, i, alignment));
  const begin = Math.ceil(cursor.position / alignment) * alignment;
  const placed = tensors.map((entry) => ({ ...entry, byteOffset: begin + entry.byteOffset }));
  requireDisjoint(placed);
  return placed;
}

function readAlignment(label: string, metadata: ReadonlyMap<string, GgufValue>): number {
  const alignment = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT;
  if (typeof alignment !== "number" || !Number.isInteger(alignment) || alignment < 1 || alignment > 2 ** 20) {
    throw new FormatError(
      `${label}: general.alignment is ${String(alignment)}: a power of two of at most 2^20 is right`,
    );
  }
  if ((alignment & (alignment - 1)) !== 0)
    throw new FormatError(`${label}: general.alignment = ${alignment} is not a power of two`);
  return alignment;
}

/** One row of the table; `byteOffset` still counts from the beginning of the data. */
async function readTensorEntry(cursor: ByteCursor, index: number, alignment: number): Promise<TensorEntry> {
  const { source } = cursor;
  const name = await readString(cursor, `the name of tensor ${index}`);
  const where = `${source.label}: tensor ${name}`;
  await cursor.need(4);
  const numDimensions = cursor.u32();
  if (numDimensions > MAX_DIMENSIONS) {
    throw new FormatError(
      `${where} is said to have ${numDimensions} dimensions: at most ${MAX_DIMENSIONS} are possible`,
    );
  }
  await cursor.need(numDimensions * 8 + 12);
  const shape: number[] = [];
  for (let axis = 0; axis < numDimensions; axis++) shape.unshift(cursor.u64()); // the file has the innermost dimension first
  const type = tensorType(where, cursor.u32());
  const byteOffset = cursor.u64();
  if (byteOffset % alignment !== 0 || byteOffset > source.size) {
    throw new FormatError(
      `${where} is said to begin at byte ${byteOffset} of the data: a multiple of ${alignment} inside the ${source.size} bytes of the file ` +
        `is right (shape ${formatShape(shape)})`,
    );
  }
  return { name, shape, type, source, byteOffset, numBytes: tensorBytes(where, shape, type) };
}

function tensorType(where: string, number: number): WeightType {
  const type = ggufTensorTypes.get(number);
  if (type !== undefined) return type;
  const name = UNSUPPORTED_TYPES.get(number);
  const supported = [...ggufTensorTypes.values()].join(", ");
  throw new FormatError(
    `${where} has ${name === undefined ? `the unknown type ${number}` : `type ${name}`}: supported are ${supported}`,
  );
}

/** The names of the other parts of a split file; none if it is whole. */
function partNames(label: string, metadata: ReadonlyMap<string, GgufValue>): string[] {
  const count = metadata.get("split.count") ?? 0;
  if (typeof count !== "number" || !Number.isInteger(count) || count < 0 || count > 99999) {
    throw new FormatError(`${label}: split.count is ${String(count)}: an integer from 0 to 99999 is right`);
  }
  if (count <= 1) return [];
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/.exec(label);
  if (match === null || Number(match[3]) !== count) {
    throw new FormatError(
      `${label} is one of ${count} parts: its name must end in -00001-of-${String(count).padStart(5, "0")}.gguf`,
    );
  }
  if (Number(match[2]) !== 1) throw new FormatError(`${label} is part ${Number(match[2])} of ${count}: open part 1`);
  const names: string[] = [];
  for (let part = 2; part <= count; part++)
    names.push(`${match[1]}-${String(part).padStart(5, "0")}-of-${match[3]}.gguf`);
  return names;
}

function joinTensors(
  label: string,
  metadata: ReadonlyMap<string, GgufValue>,
  parts: readonly GgufPart[],
): Map<string, TensorEntry> {
  const tensors = new Map<string, TensorEntry>();
  for (const part of parts) {
    for (const entry of part.tensors) {
      if (tensors.has(entry.name)) throw new FormatError(`${entry.source.label}: tensor ${entry.name} appears twice`);
      tensors.set(entry.name, entry);
    }
  }
  const expected = metadata.get("split.tensors.count");
  if (parts.length > 1 && expected !== undefined && expected !== tensors.size) {
    throw new FormatError(
      `${label}: its ${parts.length} parts hold ${tensors.size} tensors, but split.tensors.count is ${String(expected)}`,
    );
  }
  return tensors;
}
