import { existsSync, readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { buildGguf, type GgufTestFile } from "../../../test/models/buildGguf.ts";
import { FormatError } from "../../tensor/index.ts";
import { type ByteSource, bytesSource } from "./byteSource.ts";
import { fileSource, nodeFolder } from "./file.node.ts";
import { openGguf } from "./gguf.ts";
import type { SourceFolder } from "./sourceFolder.ts";
import { StringTable } from "./stringTable.ts";
import { readTensor } from "./weightsFile.ts";

const fixtures = new URL("../../../test/fixtures/formats/", import.meta.url);
const fixture = (name: string) => new URL(name, fixtures).pathname;
const fixtureBytes = (name: string) => new Uint8Array(readFileSync(fixture(name)));

function open(file: GgufTestFile) {
  return openGguf(bytesSource("model.gguf", buildGguf(file)));
}

const tensor = { name: "w", shape: [2, 32], typeNumber: 8, offset: 0 };

describe("files of the gguf package", () => {
  it("gives metadata of every type", async () => {
    const { metadata } = await openGguf(bytesSource("gemma3.gguf", fixtureBytes("gemma3.gguf")));
    expect(metadata.get("general.architecture")).toBe("gemma3");
    expect(metadata.get("gemma3.block_count")).toBe(7);
    expect(metadata.get("gemma3.attention.layer_norm_rms_epsilon")).toBe(Math.fround(1e-6));
    expect(metadata.get("tokenizer.ggml.add_bos_token")).toBe(true);
    expect(metadata.get("test.wide")).toBe(2 ** 40 + 1);
    expect(metadata.get("test.negative")).toBe(-5);
    expect(metadata.get("test.negative64")).toBe(-3);
    expect(metadata.get("test.double")).toBe(0.1);
    expect(metadata.get("test.flags")).toEqual([true, false, true]);
    expect(metadata.get("tokenizer.ggml.scores")).toEqual(new Float32Array([-0, -1, -2, -3, -4, -5, -6, -7]));
    const tokens = metadata.get("tokenizer.ggml.tokens");
    if (!(tokens instanceof StringTable)) throw new Error("tokens must be a StringTable");
    expect([...tokens]).toEqual(["<pad>", "<eos>", "<bos>", "a", "b", "é", "\u2581c", "d"]);
    expect(tokens.at(5)).toBe("é");
    expect(tokens.at(8)).toBeUndefined();
  });

  it("gives tensors with the outermost dimension first", async () => {
    const { tensors } = await openGguf(bytesSource("gemma3.gguf", fixtureBytes("gemma3.gguf")));
    const down = tensors.get("blk.0.ffn_down.weight");
    if (down === undefined) throw new Error("blk.0.ffn_down.weight must be there");
    expect(down).toMatchObject({ shape: [32, 64], type: "Q4_0", numBytes: 32 * 2 * 18 });
    expect((await readTensor(down)).length).toBe(down.numBytes);
  });

  it("joins the parts of a split file", async () => {
    const whole = await openGguf(await fileSource(fixture("llama.gguf")));
    const folder = await nodeFolder(fixture(""));
    const split = await openGguf(await folder.open("split-00001-of-00003.gguf"), folder);
    expect([...split.tensors.keys()].sort()).toEqual([...whole.tensors.keys()].sort());
    expect(new Set([...split.tensors.values()].map(({ source }) => source.label)).size).toBe(3);
    expect(split.metadata.get("llama.block_count")).toBe(2);
    await split.close();
    await whole.close();
  });

  it("names a missing part, and the first one if another is given", async () => {
    const folder = await nodeFolder(fixture(""));
    const partial: SourceFolder = { ...folder, names: folder.names.filter((name) => !name.includes("00003-of")) };
    await expect(openGguf(await folder.open("split-00001-of-00003.gguf"), partial)).rejects.toThrow(
      "there is no file split-00003-of-00003.gguf, which split-00001-of-00003.gguf needs",
    );
    await expect(openGguf(await folder.open("split-00002-of-00003.gguf"), folder)).rejects.toThrow(
      "part 2 of 3: open part 1",
    );
    await expect(openGguf(await folder.open("split-00001-of-00003.gguf"))).rejects.toThrow("is one part of several");
  });
});

describe("malformed files", () => {
  const cases: [string, GgufTestFile, string][] = [
    ["another magic", { magic: 0x12345678 }, 'begins with 0x12345678: a GGUF file begins with "GGUF"'],
    ["version 1", { version: 1 }, "has GGUF version 1: versions 2 and 3 are supported"],
    ["big-endian", { version: 0x03000000 }, "is a big-endian GGUF file"],
    ["an absurd number of tensors", { numTensors: 1n << 60n }, "tensors, more than its"],
    ["an absurd number of keys", { numPairs: 1n << 40n }, "metadata entries"],
    ["more keys than there are", { numPairs: 1n, dataBytes: 64 }, "the key of metadata entry 0 is empty"],
    [
      "an unknown value type",
      { metadata: { k: { type: "raw", typeNumber: 13, bytes: [] } } },
      "metadata k has value type 13",
    ],
    ["a boolean of 2", { metadata: { k: { type: "boolean", value: 2 } } }, "metadata k is a boolean of value 2"],
    [
      "an array longer than the file",
      { metadata: { k: { type: "raw", typeNumber: 9, bytes: [6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0] } } },
      "metadata k is said to have 4294967296 entries",
    ],
    [
      "a string longer than the file",
      { metadata: { k: { type: "raw", typeNumber: 8, bytes: [255, 255, 255, 255, 255, 0, 0, 0] } } },
      "metadata k is said to have 1099511627775 bytes",
    ],
    [
      "a key twice",
      {
        metadata: [
          ["k", { type: "u32", value: 1 }],
          ["k", { type: "u32", value: 2 }],
        ],
      },
      "metadata k appears twice",
    ],
    [
      "an alignment of 48",
      { metadata: { "general.alignment": { type: "u32", value: 48 } } },
      "general.alignment = 48 is not a power",
    ],
    ["an alignment of 0", { metadata: { "general.alignment": { type: "u32", value: 0 } } }, "general.alignment is 0"],
    ["a tensor twice", { tensors: [tensor, { ...tensor, offset: 96 }], dataBytes: 256 }, "tensor w appears twice"],
    [
      "a type it does not read",
      { tensors: [{ ...tensor, typeNumber: 16 }] },
      "tensor w has type IQ2_XXS: supported are F32",
    ],
    ["an unknown type", { tensors: [{ ...tensor, typeNumber: 99 }] }, "tensor w has the unknown type 99"],
    ["a dimension of 0", { tensors: [{ ...tensor, shape: [2, 0] }] }, "tensor w has shape [2, 0]"],
    [
      "too many dimensions",
      { tensors: [{ ...tensor, shape: [1, 1, 1, 1, 32] }] },
      "tensor w is said to have 5 dimensions",
    ],
    [
      "rows that are no whole blocks",
      { tensors: [{ ...tensor, shape: [32, 2] }] },
      "tensor w has rows of 2 weights, but Q8_0",
    ],
    ["an absurd shape", { tensors: [{ ...tensor, shape: [2 ** 50, 2 ** 50] }] }, "more than a file can hold"],
    ["a tensor past the end", { tensors: [tensor], dataBytes: 67 }, "tensor w takes bytes"],
    [
      "an offset past the end",
      { tensors: [{ ...tensor, offset: 2 ** 40 }], dataBytes: 68 },
      "tensor w is said to begin at byte 1099511627776",
    ],
    ["a misaligned offset", { tensors: [{ ...tensor, offset: 8 }], dataBytes: 100 }, "a multiple of 32"],
    [
      "overlapping tensors",
      { tensors: [tensor, { ...tensor, name: "v", offset: 64 }], dataBytes: 256 },
      "tensor v begins at byte",
    ],
    [
      "a split without the name",
      { metadata: { "split.count": { type: "u32", value: 2 } } },
      "model.gguf is one of 2 parts: its name must end",
    ],
  ];

  it.each(cases)("refuses %s", async (_, file, message) => {
    const opening = open(file);
    await expect(opening).rejects.toThrow(FormatError);
    await expect(opening).rejects.toThrow(message);
    await expect(opening).rejects.toThrow("model.gguf");
  });

  it("accepts what the cases above start from", async () => {
    const file = await open({
      tensors: [tensor],
      dataBytes: 68,
      metadata: { "general.alignment": { type: "u32", value: 32 } },
    });
    expect(file.tensors.get("w")).toMatchObject({ shape: [2, 32], type: "Q8_0", numBytes: 68 });
  });

  it("honours another alignment", async () => {
    const alignment = 128;
    const file = await open({
      metadata: { "general.alignment": { type: "u32", value: alignment } },
      tensors: [tensor, { ...tensor, name: "v", offset: alignment }],
      alignment,
      dataBytes: 256,
    });
    expect([...file.tensors.values()].map(({ byteOffset }) => byteOffset % alignment)).toEqual([0, 0]);
  });
});

describe("damaged files", () => {
  // Each run opens from memory; a wrong count may not make it slow or large.
  async function opensOrRefuses(bytes: Uint8Array): Promise<void> {
    try {
      const file = await openGguf(bytesSource("damaged.gguf", bytes));
      for (const entry of file.tensors.values())
        expect(entry.byteOffset + entry.numBytes).toBeLessThanOrEqual(bytes.length);
    } catch (error) {
      expect(error).toBeInstanceOf(FormatError);
    }
  }

  it.each(["gemma3.gguf", "llama.gguf", "phi3.gguf"])("refuses every truncation of %s", async (name) => {
    const bytes = fixtureBytes(name);
    const { tensors } = await openGguf(bytesSource(name, bytes));
    const end = Math.max(...[...tensors.values()].map((entry) => entry.byteOffset + entry.numBytes)); // padding may follow
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 0, max: end - 1 }), async (length) => {
        await expect(openGguf(bytesSource(name, bytes.subarray(0, length)))).rejects.toThrow(FormatError);
      }),
      { numRuns: 200, seed: 1 },
    );
  });

  it.each(["gemma3.gguf", "llama.gguf", "phi3.gguf"])("opens %s with flipped bytes, or refuses it", async (name) => {
    const whole = fixtureBytes(name);
    const headerBytes = 4000;
    const flip = fc.tuple(fc.integer({ min: 0, max: headerBytes - 1 }), fc.integer({ min: 1, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(flip, { minLength: 1, maxLength: 4 }), async (flips) => {
        const bytes = whole.slice();
        for (const [at, mask] of flips) bytes[at] ^= mask;
        await opensOrRefuses(bytes);
      }),
      { numRuns: 500, seed: 2 },
    );
  });

  it("refuses noise", async () => {
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), opensOrRefuses), { seed: 3 });
  });
});

describe("large files", () => {
  it("reads tensors beyond 4 GiB", async () => {
    const begin = 5 * 2 ** 30;
    const header = buildGguf({ tensors: [{ ...tensor, offset: begin }] });
    const size = header.length + begin + 68;
    const asked: number[] = [];
    const source: ByteSource = {
      label: "large.gguf",
      size,
      async read(offset, length) {
        asked.push(offset);
        const bytes = new Uint8Array(length);
        bytes.set(header.subarray(offset, offset + length));
        return bytes;
      },
      async readInto() {},
      async close() {},
    };
    const file = await openGguf(source);
    const entry = file.tensors.get("w");
    if (entry === undefined) throw new Error("w must be there");
    await readTensor(entry);
    expect(asked.at(-1)).toBe(header.length + begin);
  });
});

const goldens = new URL("../../../../shared/goldens/models/gguf/", import.meta.url);

describe.skipIf(!existsSync(goldens))("golden files", () => {
  it.each(["llama_f32", "llama_mixed", "llama_k", "qwen2_mixed"])("%s has the tensor types it should", async (name) => {
    const expected = JSON.parse(readFileSync(new URL(`${name}.json`, goldens), "utf8"));
    const file = await openGguf(await fileSource(new URL(`${name}.gguf`, goldens).pathname));
    const types = Object.fromEntries([...file.tensors].map(([tensorName, { type }]) => [tensorName, type]));
    expect(types).toEqual(expected.tensor_types);
    await file.close();
  });
});
