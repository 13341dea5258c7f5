/**
 * safetensors files, one or in shards with an index: the JSON header and where each tensor lies. Only the float types that checkpoints use;
 * the config beside them is src/models/config's. Format: huggingface/safetensors.
 */

import { FormatError, type WeightType } from "../../tensor/index.ts";
import { type ByteSource, closeAll } from "./byteSource.ts";
import { duplicateKey } from "./jsonKeys.ts";
import {
  isJsonObject,
  type JsonObject,
  openNamed,
  parseJsonObject,
  readJsonFile,
  type SourceFolder,
} from "./sourceFolder.ts";
import { requireDisjoint, type TensorEntry, tensorBytes, type WeightsFile } from "./weightsFile.ts";

/** The format's own limit. */
const MAX_HEADER_BYTES = 100_000_000;
const METADATA_KEY = "__metadata__";

const TYPES: ReadonlyMap<unknown, WeightType> = new Map<unknown, WeightType>([
  ["F32", "F32"],
  ["F16", "F16"],
  ["BF16", "BF16"],
]);

interface Shard {
  readonly metadata: ReadonlyMap<string, unknown>;
  readonly tensors: readonly TensorEntry[];
}

/** Opens one safetensors file. Throws FormatError naming the file and the tensor at fault. */
export async function openSafetensors(source: ByteSource): Promise<WeightsFile> {
  return openShards(source.label, [source]);
}

/**
 * Opens the shards that an index file (`model.safetensors.index.json`) names. Throws FormatError if a shard is missing, or a tensor is not in
 * the shard that the index says.
 */
export async function openShardedSafetensors(folder: SourceFolder, indexName: string): Promise<WeightsFile> {
  const index = await readJsonFile(folder, indexName, "the caller");
  const shardOf = readWeightMap(indexName, index.weight_map);
  const sources: ByteSource[] = [];
  try {
    for (const name of [...new Set(shardOf.values())].sort()) sources.push(await openNamed(folder, name, indexName));
  } catch (error) {
    await closeAll(sources);
    throw error;
  }
  const file = await openShards(indexName, sources);
  for (const [name, shard] of shardOf) {
    const entry = file.tensors.get(name);
    if (entry?.source.label === shard) continue;
    await file.close();
    const found = entry === undefined ? "no shard has it" : `it is in ${entry.source.label}`;
    throw new FormatError(`${indexName} says that tensor ${name} is in ${shard}, but ${found}`);
  }
  return file;
}

function readWeightMap(label: string, weightMap: unknown): Map<string, string> {
  if (!isJsonObject(weightMap))
    throw new FormatError(`${label}: weight_map must be an object from tensor names to file names`);
  const shardOf = new Map<string, string>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== "string" || /[/\\]/.test(shard)) {
      throw new FormatError(
        `${label}: weight_map says ${JSON.stringify(shard)} for ${name}: the name of a file beside it is right`,
      );
    }
    shardOf.set(name, shard);
  }
  if (shardOf.size === 0) throw new FormatError(`${label}: weight_map names no tensor`);
  return shardOf;
}

async function openShards(label: string, sources: readonly ByteSource[]): Promise<WeightsFile> {
  try {
    const metadata = new Map<string, unknown>();
    const tensors = new Map<string, TensorEntry>();
    for (const source of sources) {
      const shard = await readShard(source);
      for (const [key, value] of shard.metadata) metadata.set(key, value);
      for (const entry of shard.tensors) {
        const other = tensors.get(entry.name);
        if (other !== undefined) {
          throw new FormatError(`${source.label}: tensor ${entry.name} is in ${other.source.label} too`);
        }
        tensors.set(entry.name, entry);
      }
    }
    const numBytes = sources.reduce((sum, { size }) => sum + size, 0);
    return { format: "safetensors", label, metadata, tensors, numBytes, close: () => closeAll(sources) };
  } catch (error) {
    await closeAll(sources);
    throw error;
  }
}

async function readShard(source: ByteSource): Promise<Shard> {
  const { label } = source;
  const header = await readHeader(source);
  const dataBegin = 8 + header.numBytes;
  const tensors: TensorEntry[] = [];
  for (const [name, value] of Object.entries(header.json)) {
    if (name !== METADATA_KEY) tensors.push(readEntry(source, name, value, dataBegin));
  }
  requireDisjoint(tensors);
  const end = tensors.reduce((last, entry) => Math.max(last, entry.byteOffset + entry.numBytes), dataBegin);
  if (end !== source.size) {
    throw new FormatError(`${label} has ${source.size} bytes, but its last tensor ends at byte ${end}`);
  }
  const metadata = header.json[METADATA_KEY];
  return { metadata: new Map(isJsonObject(metadata) ? Object.entries(metadata) : []), tensors };
}

async function readHeader(source: ByteSource): Promise<{ json: JsonObject; numBytes: number }> {
  const { label, size } = source;
  if (size < 8) throw new FormatError(`${label} has ${size} bytes: a safetensors file has at least 8`);
  const prefix = await source.read(0, 8);
  const view = new DataView(prefix.buffer, prefix.byteOffset, 8);
  const numBytes = view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
  if (numBytes > size - 8 || numBytes > MAX_HEADER_BYTES) {
    throw new FormatError(
      `${label}: the header is said to have ${numBytes} bytes, but the file has ${size} and a header at most ${MAX_HEADER_BYTES}`,
    );
  }
  const text = new TextDecoder().decode(await source.read(8, numBytes));
  const json = parseJsonObject(`The header of ${label}`, text);
  const twice = duplicateKey(text);
  if (twice !== undefined) throw new FormatError(`${label}: tensor ${twice} appears twice in the header`);
  return { json, numBytes };
}

function readEntry(source: ByteSource, name: string, value: unknown, dataBegin: number): TensorEntry {
  const where = `${source.label}: tensor ${name}`;
  if (!isJsonObject(value)) throw new FormatError(`${where} must be an object with dtype, shape and data_offsets`);
  const type = TYPES.get(value.dtype);
  if (type === undefined) {
    throw new FormatError(
      `${where} has dtype ${JSON.stringify(value.dtype)}: supported are ${[...TYPES.values()].join(", ")}`,
    );
  }
  const { shape, data_offsets: offsets } = value;
  if (!isNumberList(shape))
    throw new FormatError(`${where} has shape ${JSON.stringify(shape)}: a list of numbers is right`);
  if (!isNumberList(offsets) || offsets.length !== 2 || !offsets.every((at) => Number.isSafeInteger(at) && at >= 0)) {
    throw new FormatError(`${where} has data_offsets ${JSON.stringify(offsets)}: two byte offsets are right`);
  }
  const numBytes = tensorBytes(where, shape, type);
  if (offsets[1] - offsets[0] !== numBytes) {
    throw new FormatError(
      `${where} of type ${type} and shape ${JSON.stringify(shape)} takes ${numBytes} bytes, but data_offsets ${JSON.stringify(offsets)} are ` +
        `${offsets[1] - offsets[0]} apart`,
    );
  }
  return { name, shape, type, source, byteOffset: dataBegin + offsets[0], numBytes };
}

function isNumberList(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every((entry) => typeof entry === "number");
}
