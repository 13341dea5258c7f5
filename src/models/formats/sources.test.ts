import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ArgumentError, FormatError } from "../../tensor/index.ts";
import { blobSource, filesFolder } from "./blob.ts";
import { ByteCursor } from "./byteCursor.ts";
import { type ByteSource, bytesSource } from "./byteSource.ts";
import { fileSource, locate } from "./file.node.ts";
import { openWeights } from "./openWeights.ts";

const content = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
let folder = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvasir-"));
  writeFileSync(join(folder, "bytes"), content);
});
afterAll(() => rmSync(folder, { recursive: true }));

const kinds: [string, () => Promise<ByteSource>][] = [
  ["memory", async () => bytesSource("bytes", content)],
  ["a Blob", async () => blobSource(new Blob([content]), "bytes")],
  ["a file", () => fileSource(join(folder, "bytes"))],
];

describe.each(kinds)("a source over %s", (_, openSource) => {
  it("reads any range, into shared memory too", async () => {
    const source = await openSource();
    await fc.assert(
      fc.asyncProperty(fc.nat(1000), fc.nat(1000), async (a, b) => {
        const [begin, end] = [Math.min(a, b), Math.max(a, b)];
        expect(await source.read(begin, end - begin)).toEqual(content.slice(begin, end));
        const shared = new Uint8Array(new SharedArrayBuffer(end - begin + 2), 1, end - begin);
        await source.readInto(begin, shared);
        expect(Uint8Array.from(shared)).toEqual(content.slice(begin, end));
      }),
      { numRuns: 30, seed: 1 },
    );
    await source.close();
  });

  it("refuses ranges past the end", async () => {
    const source = await openSource();
    expect(source.size).toBe(1000);
    await expect(source.read(990, 11)).rejects.toThrow(FormatError);
    await expect(source.read(990, 11)).rejects.toThrow("bytes: bytes 990 to 1001 were wanted, but the file has 1000");
    await expect(source.readInto(1000, new Uint8Array(1))).rejects.toThrow(FormatError);
    await expect(source.read(-1, 1)).rejects.toThrow(ArgumentError);
    await expect(source.read(0, 1.5)).rejects.toThrow(ArgumentError);
    await source.close();
  });
});

describe("files", () => {
  it("are read beyond 4 GiB", async () => {
    const path = join(folder, "sparse");
    const offset = 5 * 2 ** 30;
    const descriptor = openSync(path, "w");
    writeSync(descriptor, content, 0, 100, offset); // the hole before it takes no space
    closeSync(descriptor);
    const source = await fileSource(path);
    expect(source.size).toBe(offset + 100);
    expect(await source.read(offset + 1, 3)).toEqual(content.slice(1, 4));
    await source.close();
  });

  it("must exist and be files", async () => {
    await expect(fileSource(join(folder, "missing"))).rejects.toThrow(FormatError);
    await expect(fileSource(folder)).rejects.toThrow("is not a file");
    await expect(locate(join(folder, "missing"))).rejects.toThrow("does not exist");
  });

  it("are located by path", async () => {
    expect((await locate(folder)).fileName).toBeUndefined();
    const { folder: parent, fileName } = await locate(join(folder, "bytes"));
    expect(fileName).toBe("bytes");
    expect(parent.names).toContain("bytes");
  });
});

describe("a cursor", () => {
  it("reads numbers across the ends of its buffer", async () => {
    const cursor = new ByteCursor(bytesSource("bytes", content));
    await cursor.need(8);
    expect([cursor.u8(), cursor.u16(), cursor.position]).toEqual([0, 0x0201, 3]);
    await cursor.need(4);
    expect(cursor.u32()).toBe(0x06050403);
    expect(await cursor.copy(2)).toEqual(content.slice(7, 9));
    expect(cursor.numLeft).toBe(991);
    await expect(cursor.need(992)).rejects.toThrow(FormatError);
  });

  it("refuses to read what was not asked for", () => {
    expect(() => new ByteCursor(bytesSource("bytes", content)).u8()).toThrow(FormatError);
  });
});

describe("openWeights", () => {
  const files = (...names: string[]) => filesFolder(names.map((name) => new File([], name)));

  it("needs one model in a folder", async () => {
    await expect(openWeights(files("readme.md"))).rejects.toThrow("the given files holds no model");
    await expect(openWeights(files("a.gguf", "b.gguf"))).rejects.toThrow("several models: name one of a.gguf, b.gguf");
  });

  it("knows formats by name", async () => {
    await expect(openWeights(files("a.onnx"), "a.onnx")).rejects.toThrow("a.onnx is no weights file");
    await expect(openWeights(files("a.bin"), "a.bin")).rejects.toThrow("bytes 0 to 28 were wanted");
    await expect(openWeights(files("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"))).rejects.toThrow(
      "m-00001-of-00002.gguf: bytes",
    );
  });
});
