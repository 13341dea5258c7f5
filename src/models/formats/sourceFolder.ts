/**
 * A folder of model files, wherever it is: on disk, or files that a page was given. Models of several files (shards, a config beside the
 * weights) are read through it.
 */

import { FormatError } from "../../tensor/index.ts";
import type { ByteSource } from "./byteSource.ts";

/** Files by name. */
export interface SourceFolder {
  /** What errors call it. */
  readonly label: string;
  /** The names of the files in it. */
  readonly names: readonly string[];
  /** Opens one of them. */
  open(name: string): Promise<ByteSource>;
}

/** Opens a file of the folder. Throws FormatError, with the reason why it is wanted, if it is not there. */
export async function openNamed(folder: SourceFolder, name: string, wantedBy: string): Promise<ByteSource> {
  if (!folder.names.includes(name))
    throw new FormatError(`${folder.label}: there is no file ${name}, which ${wantedBy} needs`);
  return folder.open(name);
}

/** Larger than any config or index file, small enough to be read whole. */
const MAX_JSON_BYTES = 64 * 2 ** 20;

/** A JSON object. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Whether a parsed JSON value is an object. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Parses JSON text whose top level is an object. Throws FormatError naming `label`. */
export function parseJsonObject(label: string, text: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(`${label} is not valid JSON: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  if (!isJsonObject(value)) throw new FormatError(`${label} must hold a JSON object`);
  return value;
}

/** Reads the JSON object in a file of the folder. Throws FormatError if it is missing, huge or no object. */
export async function readJsonFile(folder: SourceFolder, name: string, wantedBy: string): Promise<JsonObject> {
  const source = await openNamed(folder, name, wantedBy);
  try {
    if (source.size > MAX_JSON_BYTES) {
      throw new FormatError(`${name} has ${source.size} bytes: a file of that name has at most ${MAX_JSON_BYTES}`);
    }
    return parseJsonObject(name, new TextDecoder().decode(await source.read(0, source.size)));
  } finally {
    await source.close();
  }
}
