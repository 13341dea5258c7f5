import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { FormatError } from "../../tensor/index.ts";
import { bytesSource } from "./byteSource.ts";
import { duplicateKey } from "./jsonKeys.ts";
import { openSafetensors, openShardedSafetensors } from "./safetensors.ts";
import type { SourceFolder } from "./sourceFolder.ts";
import { readTensor } from "./weightsFile.ts";

/** A file of the given header, text or object, and data. */
function build(header: unknown, dataBytes: number, headerBytes?: number): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + text.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(headerBytes ?? text.length), true);
  bytes.set(text, 8);
  for (let i = 0; i < dataBytes; i++) bytes[8 + text.length + i] = i;
  return bytes;
}

function open(header: unknown, dataBytes: number, headerBytes?: number) {
  return openSafetensors(bytesSource("model.safetensors", build(header, dataBytes, headerBytes)));
}

const sound = {
  __metadata__: { format: "pt" },
  a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
  b: { dtype: "BF16", shape: [4], data_offsets: [24, 32] },
  scalar: { dtype: "F16", shape: [], data_offsets: [32, 34] },
};

describe("one file", () => {
  it("gives its tensors and metadata", async () => {
    const file = await open(sound, 34);
    expect(file.metadata.get("format")).toBe("pt");
    expect([...file.tensors.keys()]).toEqual(["a", "b", "scalar"]);
    const b = file.tensors.get("b");
    if (b === undefined) throw new Error("b must be there");
    expect(b).toMatchObject({ shape: [4], type: "BF16", numBytes: 8 });
    expect([...(await readTensor(b))]).toEqual([24, 25, 26, 27, 28, 29, 30, 31]);
  });

  const a = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
  const cases: [string, unknown, number, string][] = [
    ["no JSON", "{", 0, "The header of model.safetensors is not valid JSON"],
    ["a JSON list", [], 0, "must hold a JSON object"],
    ["a tensor that is no object", { a: 1 }, 0, "tensor a must be an object"],
    [
      "a type it does not read",
      { a: { ...a, dtype: "F8_E4M3" } },
      8,
      'tensor a has dtype "F8_E4M3": supported are F32, F16, BF16',
    ],
    ["no shape", { a: { ...a, shape: undefined } }, 8, "tensor a has shape undefined"],
    ["a negative dimension", { a: { ...a, shape: [-2] } }, 8, "tensor a has shape [-2]"],
    ["a fractional dimension", { a: { ...a, shape: [1.5] } }, 8, "tensor a has shape [1.5]"],
    ["an absurd shape", { a: { ...a, shape: [2 ** 40, 2 ** 40] } }, 8, "more than a file can hold"],
    [
      "offsets that do not fit the shape",
      { a: { ...a, data_offsets: [0, 12] } },
      12,
      "takes 8 bytes, but data_offsets [0,12] are 12 apart",
    ],
    ["offsets that are no numbers", { a: { ...a, data_offsets: "0-8" } }, 8, 'data_offsets "0-8"'],
    ["a tensor past the end", { a }, 4, "tensor a takes bytes"],
    ["overlapping tensors", { a, b: { ...a, data_offsets: [4, 12] } }, 12, "tensor b begins at byte"],
    ["bytes behind the last tensor", { a }, 9, "but its last tensor ends at byte"],
    [
      "a tensor twice",
      '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
      8,
      "tensor a appears twice",
    ],
  ];
  it.each(cases)("refuses %s", async (_, header, dataBytes, message) => {
    const opening = open(header, dataBytes);
    await expect(opening).rejects.toThrow(FormatError);
    await expect(opening).rejects.toThrow(message);
  });

  it("refuses a header longer than the file, and absurdly long ones", async () => {
    await expect(open(sound, 34, 10_000)).rejects.toThrow("the header is said to have 10000 bytes, but the file has");
    await expect(openSafetensors(bytesSource("s", new Uint8Array(8).fill(255)))).rejects.toThrow(
      "the header is said to have",
    );
    await expect(openSafetensors(bytesSource("s", new Uint8Array(7)))).rejects.toThrow("s has 7 bytes");
  });
});

describe("damaged files", () => {
  async function opensOrRefuses(bytes: Uint8Array): Promise<void> {
    try {
      const file = await openSafetensors(bytesSource("damaged", bytes));
      for (const entry of file.tensors.values())
        expect(entry.byteOffset + entry.numBytes).toBeLessThanOrEqual(bytes.length);
    } catch (error) {
      expect(error).toBeInstanceOf(FormatError);
    }
  }

  it("are opened or refused, whatever bytes flip", async () => {
    const whole = build(sound, 34);
    const flip = fc.tuple(fc.integer({ min: 0, max: whole.length - 1 }), fc.integer({ min: 1, max: 255 }));
    await fc.assert(
      fc.asyncProperty(fc.array(flip, { minLength: 1, maxLength: 3 }), async (flips) => {
        const bytes = whole.slice();
        for (const [at, mask] of flips) bytes[at] ^= mask;
        await opensOrRefuses(bytes);
      }),
      { numRuns: 500, seed: 1 },
    );
  });

  it("are refused wherever they are cut", async () => {
    const whole = build(sound, 34);
    for (let length = 0; length < whole.length; length++) {
      await expect(openSafetensors(bytesSource("cut", whole.subarray(0, length)))).rejects.toThrow(FormatError);
    }
  });
});

describe("shards", () => {
  const entry = { dtype: "F32", shape: [1], data_offsets: [0, 4] };

  function folder(files: Record<string, Uint8Array>): SourceFolder {
    return { label: "folder", names: Object.keys(files), open: async (name) => bytesSource(name, files[name]) };
  }

  function openIndex(weightMap: unknown, files: Record<string, Uint8Array>) {
    const index = new TextEncoder().encode(JSON.stringify({ metadata: { total_size: 8 }, weight_map: weightMap }));
    return openShardedSafetensors(
      folder({ ...files, "model.safetensors.index.json": index }),
      "model.safetensors.index.json",
    );
  }

  it("are joined", async () => {
    const file = await openIndex(
      { a: "1.safetensors", b: "2.safetensors" },
      {
        "1.safetensors": build({ a: entry }, 4),
        "2.safetensors": build({ b: entry }, 4),
      },
    );
    expect([...file.tensors.values()].map(({ name, source }) => [name, source.label])).toEqual([
      ["a", "1.safetensors"],
      ["b", "2.safetensors"],
    ]);
  });

  it("must be there, and hold what the index says", async () => {
    const files = { "1.safetensors": build({ a: entry }, 4), "2.safetensors": build({ b: entry }, 4) };
    await expect(openIndex({ a: "3.safetensors" }, files)).rejects.toThrow("there is no file 3.safetensors");
    await expect(openIndex({ a: "2.safetensors" }, files)).rejects.toThrow(
      "tensor a is in 2.safetensors, but no shard has it",
    );
    await expect(openIndex({ a: "../1.safetensors" }, files)).rejects.toThrow("the name of a file beside it is right");
    await expect(openIndex({}, files)).rejects.toThrow("weight_map names no tensor");
    await expect(openIndex(undefined, files)).rejects.toThrow("weight_map must be an object");
    const twice = { ...files, "2.safetensors": build({ a: entry }, 4) };
    await expect(openIndex({ a: "1.safetensors", b: "2.safetensors" }, twice)).rejects.toThrow(
      "tensor a is in 1.safetensors too",
    );
  });
});

describe("duplicateKey", () => {
  it("agrees with the keys that were written", () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.string({ unit: "binary" }), fc.jsonValue()), { maxLength: 6 }), (pairs) => {
        const text = `{${pairs.map(([key, value]) => `${JSON.stringify(key)} : ${JSON.stringify(value)}`).join(",")}}`;
        const keys = pairs.map(([key]) => key);
        expect(duplicateKey(text)).toBe(keys.find((key, i) => keys.indexOf(key) < i));
      }),
      { seed: 1 },
    );
  });
});
