/**
 * Builds small GGUF files in memory, sound or deliberately broken: for tests of the reader and of whoever uses it. Values are given with their
 * type numbers, and every count and offset can be overridden.
 */

/** A metadata value with its GGUF type. Numbers of 64 bits are given as bigint. */
export type GgufTestValue =
  | { readonly type: "u32" | "f32" | "boolean"; readonly value: number }
  | { readonly type: "u64"; readonly value: bigint }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly value: readonly string[] }
  | { readonly type: "raw"; readonly typeNumber: number; readonly bytes: readonly number[] };

/** A tensor; `shape` outermost first. The data are zeros. */
export interface GgufTestTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly typeNumber: number;
  /** Offset from the beginning of the data. */
  readonly offset: number;
}

export interface GgufTestFile {
  readonly magic?: number;
  readonly version?: number;
  readonly metadata?: Readonly<Record<string, GgufTestValue>> | readonly (readonly [string, GgufTestValue])[];
  readonly tensors?: readonly GgufTestTensor[];
  readonly numTensors?: bigint;
  readonly numPairs?: bigint;
  readonly alignment?: number;
  /** Bytes of data behind the header. */
  readonly dataBytes?: number;
}

/** The bytes of the file. */
export function buildGguf(file: GgufTestFile): Uint8Array<ArrayBuffer> {
  const bytes: number[] = [];
  const word = new DataView(new ArrayBuffer(8));
  const put = (numBytes: number): void => {
    for (let i = 0; i < numBytes; i++) bytes.push(word.getUint8(i));
  };
  const u32 = (value: number): void => {
    word.setUint32(0, value, true);
    put(4);
  };
  const u64 = (value: bigint): void => {
    word.setBigUint64(0, value, true);
    put(8);
  };
  const string = (text: string): void => {
    const utf8 = new TextEncoder().encode(text);
    u64(BigInt(utf8.length));
    bytes.push(...utf8);
  };
  const value = (entry: GgufTestValue): void => {
    switch (entry.type) {
      case "u32":
        u32(4);
        u32(entry.value);
        break;
      case "f32":
        u32(6);
        word.setFloat32(0, entry.value, true);
        put(4);
        break;
      case "boolean":
        u32(7);
        bytes.push(entry.value);
        break;
      case "u64":
        u32(10);
        u64(entry.value);
        break;
      case "string":
        u32(8);
        string(entry.value);
        break;
      case "strings":
        u32(9);
        u32(8);
        u64(BigInt(entry.value.length));
        for (const text of entry.value) string(text);
        break;
      case "raw":
        u32(entry.typeNumber);
        bytes.push(...entry.bytes);
        break;
    }
  };

  const pairs = Array.isArray(file.metadata) ? file.metadata : Object.entries(file.metadata ?? {});
  const tensors = file.tensors ?? [];
  u32(file.magic ?? 0x46554747);
  u32(file.version ?? 3);
  u64(file.numTensors ?? BigInt(tensors.length));
  u64(file.numPairs ?? BigInt(pairs.length));
  for (const [key, entry] of pairs) {
    string(key);
    value(entry);
  }
  for (const tensor of tensors) {
    string(tensor.name);
    u32(tensor.shape.length);
    for (const size of [...tensor.shape].reverse()) u64(BigInt(size));
    u32(tensor.typeNumber);
    u64(BigInt(tensor.offset));
  }
  const alignment = file.alignment ?? 32;
  while (bytes.length % alignment !== 0) bytes.push(0);
  for (let i = 0; i < (file.dataBytes ?? 0); i++) bytes.push(0);
  return Uint8Array.from(bytes);
}
