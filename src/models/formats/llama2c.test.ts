import { describe, expect, it } from "vitest";
import { FormatError } from "../../tensor/index.ts";
import { bytesSource } from "./byteSource.ts";
import { openLlama2c } from "./llama2c.ts";

// dim, hidden, layers, heads, kv heads, vocabulary, longest sequence
const header = [8, 12, 2, 2, 1, 10, 16];

function build(fields: number[], numFloats: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(28 + 4 * numFloats);
  const view = new DataView(bytes.buffer);
  for (const [i, field] of fields.entries()) view.setInt32(4 * i, field, true);
  return bytes;
}

const layer = 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96;
const numFloats = 80 + 2 * layer + 8 + 16 * 4;
const open = (fields: number[], floats: number) => openLlama2c(bytesSource("m.bin", build(fields, floats)));

describe("llama2.c checkpoints", () => {
  it("hold their tensors one after the other, layer by layer", async () => {
    const file = await open(header, numFloats);
    expect(file.metadata.get("llama2c.numKvHeads")).toBe(1);
    expect(file.tensors.get("embedding")).toMatchObject({ byteOffset: 28, shape: [10, 8] });
    expect(file.tensors.get("layers.1.attentionNorm")).toMatchObject({ byteOffset: 28 + 4 * (80 + 8), shape: [8] });
    expect(file.tensors.get("layers.0.attention.k")).toMatchObject({ shape: [4, 8] });
    expect(file.tensors.get("layers.0.mlp.down")).toMatchObject({ shape: [8, 12] });
    expect(file.tensors.has("output")).toBe(false);
  });

  it("have an output matrix of their own when the vocabulary size is negative", async () => {
    const fields = header.with(5, -10);
    const file = await open(fields, numFloats + 80);
    expect(file.tensors.get("output")).toMatchObject({ shape: [10, 8], byteOffset: 28 + 4 * numFloats });
    expect(file.metadata.get("llama2c.vocabSize")).toBe(10);
  });

  it.each([
    ["another length", header, numFloats + 1, "but its header"],
    ["too few bytes", header, 100, "tensor layers.0.attention.q ends at byte"],
    ["no layers", header.with(2, 0), numFloats, "numLayers is 0"],
    ["absurdly many layers", header.with(2, 2 ** 24), numFloats, "ends at byte"],
    ["heads that do not divide", header.with(3, 3), numFloats, "dim = 8 must be numHeads = 3 times an even number"],
    [
      "key/value heads that do not divide",
      header.with(3, 4).with(4, 3),
      numFloats,
      "numHeads = 4 must be a multiple of numKvHeads = 3",
    ],
  ])("are refused with %s", async (_, fields, floats, message) => {
    const opening = open(fields, floats);
    await expect(opening).rejects.toThrow(FormatError);
    await expect(opening).rejects.toThrow(message);
  });

  it("are refused when the header is cut", async () => {
    await expect(openLlama2c(bytesSource("m.bin", new Uint8Array(20)))).rejects.toThrow(
      "m.bin: bytes 0 to 28 were wanted",
    );
  });
});
