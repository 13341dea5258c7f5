/** The typed values of GGUF metadata: numbers, strings, booleans and arrays of them. The file around them is gguf.ts's. */

import { FormatError } from "../../tensor/index.ts";
import type { ByteCursor } from "./byteCursor.ts";
import { type StringTable, StringTableBuilder } from "./stringTable.ts";

/** Value type numbers of the format. */
export const GgufValueType = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  boolean: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;

/** Numbers in the narrowest typed array that holds them exactly; 64-bit integers in a Float64Array. */
type NumberArray =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array;

/** A metadata value. */
export type GgufValue = number | boolean | string | NumberArray | boolean[] | StringTable | GgufValue[];

/** No key, tensor name or template is longer. */
const MAX_STRING_BYTES = 64 * 2 ** 20;
const MAX_TABLE_BYTES = 2 ** 30;
const MAX_NESTING = 4;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Reads a length-prefixed string; `what` names it in errors. */
export async function readString(cursor: ByteCursor, what: string): Promise<string> {
  await cursor.need(8);
  const numBytes = cursor.u64();
  requireStringLength(cursor, what, numBytes);
  await cursor.need(numBytes);
  return decoder.decode(cursor.bytes(numBytes));
}

function requireStringLength(cursor: ByteCursor, what: string, numBytes: number): void {
  if (numBytes > cursor.numLeft || numBytes > MAX_STRING_BYTES) {
    throw new FormatError(
      `${cursor.source.label}: ${what} is said to have ${numBytes} bytes, but ${cursor.numLeft} are left in the file ` +
        `and a string has at most ${MAX_STRING_BYTES}`,
    );
  }
}

interface ScalarType {
  /** 64-bit integers are read one by one, as numbers. */
  readonly isWide?: true;
  readonly numBytes: number;
  read(cursor: ByteCursor): number;
  array(length: number): NumberArray;
}

const SCALARS: ReadonlyMap<number, ScalarType> = new Map<number, ScalarType>([
  [GgufValueType.u8, { numBytes: 1, read: (c) => c.u8(), array: (n) => new Uint8Array(n) }],
  [GgufValueType.i8, { numBytes: 1, read: (c) => (c.u8() << 24) >> 24, array: (n) => new Int8Array(n) }],
  [GgufValueType.u16, { numBytes: 2, read: (c) => c.u16(), array: (n) => new Uint16Array(n) }],
  [GgufValueType.i16, { numBytes: 2, read: (c) => c.i16(), array: (n) => new Int16Array(n) }],
  [GgufValueType.u32, { numBytes: 4, read: (c) => c.u32(), array: (n) => new Uint32Array(n) }],
  [GgufValueType.i32, { numBytes: 4, read: (c) => c.i32(), array: (n) => new Int32Array(n) }],
  [GgufValueType.f32, { numBytes: 4, read: (c) => c.f32(), array: (n) => new Float32Array(n) }],
  [GgufValueType.u64, { isWide: true, numBytes: 8, read: (c) => c.u64(), array: (n) => new Float64Array(n) }],
  [GgufValueType.i64, { isWide: true, numBytes: 8, read: (c) => c.i64(), array: (n) => new Float64Array(n) }],
  [GgufValueType.f64, { numBytes: 8, read: (c) => c.f64(), array: (n) => new Float64Array(n) }],
]);

/** Reads a value of the given type number. Throws FormatError naming `key` for an unknown type or a count the file cannot hold. */
export async function readValue(cursor: ByteCursor, key: string, type: number, depth = 0): Promise<GgufValue> {
  const scalar = SCALARS.get(type);
  if (scalar !== undefined) {
    await cursor.need(scalar.numBytes);
    return scalar.read(cursor);
  }
  if (type === GgufValueType.boolean) {
    await cursor.need(1);
    return toBoolean(cursor, key, cursor.u8());
  }
  if (type === GgufValueType.string) return readString(cursor, `metadata ${key}`);
  if (type === GgufValueType.array) return readArray(cursor, key, depth);
  throw new FormatError(`${cursor.source.label}: metadata ${key} has value type ${type}: there are types 0 to 12`);
}

function toBoolean(cursor: ByteCursor, key: string, value: number): boolean {
  if (value > 1)
    throw new FormatError(`${cursor.source.label}: metadata ${key} is a boolean of value ${value}: 0 or 1 is right`);
  return value === 1;
}

async function readArray(cursor: ByteCursor, key: string, depth: number): Promise<GgufValue> {
  const { label } = cursor.source;
  if (depth === MAX_NESTING)
    throw new FormatError(`${label}: metadata ${key} nests arrays more than ${MAX_NESTING} deep`);
  await cursor.need(12);
  const type = cursor.u32();
  const length = cursor.u64();
  const scalar = SCALARS.get(type);
  const minBytes = scalar?.numBytes ?? (type === GgufValueType.string ? 8 : type === GgufValueType.array ? 12 : 1);
  if (length * minBytes > cursor.numLeft) {
    throw new FormatError(
      `${label}: metadata ${key} is said to have ${length} entries, more than the ${cursor.numLeft} bytes left hold`,
    );
  }
  if (scalar !== undefined) return readNumbers(cursor, scalar, length);
  if (type === GgufValueType.string) return readStrings(cursor, key, length);
  if (type === GgufValueType.boolean) {
    const bytes = await cursor.copy(length);
    return Array.from(bytes, (byte) => toBoolean(cursor, key, byte));
  }
  const values: GgufValue[] = [];
  for (let i = 0; i < length; i++) values.push(await readValue(cursor, `${key}[${i}]`, type, depth + 1));
  return values;
}

async function readNumbers(cursor: ByteCursor, scalar: ScalarType, length: number): Promise<NumberArray> {
  const values = scalar.array(length);
  if (!scalar.isWide) {
    // The file and every engine are little endian: the bytes are the array.
    new Uint8Array(values.buffer).set(await cursor.copy(values.byteLength));
    return values;
  }
  let i = 0;
  while (i < length) {
    await cursor.need(scalar.numBytes);
    const end = Math.min(length, i + Math.floor(cursor.numBuffered / scalar.numBytes));
    for (; i < end; i++) values[i] = scalar.read(cursor);
  }
  return values;
}

async function readStrings(cursor: ByteCursor, key: string, length: number): Promise<StringTable> {
  const table = new StringTableBuilder(length);
  let i = 0;
  while (i < length) {
    // The string at the position is made available whole; then everything that happens to be buffered is taken in one go.
    await cursor.need(8);
    const numBytes = cursor.peekU64(0);
    requireStringLength(cursor, `metadata ${key}[${i}]`, numBytes);
    await cursor.need(8 + numBytes);
    const chunk = cursor.buffered();
    const taken = table.addPrefixed(chunk, length - i);
    if (table.numBytes > MAX_TABLE_BYTES) {
      throw new FormatError(
        `${cursor.source.label}: metadata ${key} has strings of more than ${MAX_TABLE_BYTES} bytes`,
      );
    }
    i += taken.numStrings;
    cursor.skip(taken.numBytes);
  }
  return table.finish();
}
