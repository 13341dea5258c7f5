import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { chooseFiles } from "./hubDownload.ts";
import { BUNDLED_MODEL } from "./invocation.ts";
import { findModel, isModelName, parseRepositoryName } from "./modelNames.ts";
import { splitModel } from "./modelWords.ts";
import { resolveModel } from "./resolveModel.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvasir-models-"));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

const write = (...names: string[]): void => {
  for (const name of names) writeFileSync(join(folder, name), "x");
};

describe("names", () => {
  it("tells models from prompts", () => {
    expect(parseRepositoryName("google/gemma-3-270m")).toEqual({
      repository: "google/gemma-3-270m",
      choice: undefined,
    });
    expect(parseRepositoryName("a/b-GGUF:Q4_K_M")).toEqual({ repository: "a/b-GGUF", choice: "Q4_K_M" });
    expect(parseRepositoryName("either/or, he said")).toBeUndefined();
    expect(["x.gguf", "./model", "a/b"].map(isModelName)).toEqual([true, true, true]);
    expect(["Once", "Once upon a time", "and so...", "yes/no?"].map(isModelName)).toEqual([false, false, false, false]);
    expect(splitModel(["x.gguf", "Once"], undefined)).toEqual({ model: "x.gguf", rest: ["Once"] });
    expect(splitModel(["Once", "Twice"], undefined)).toEqual({ model: undefined, rest: ["Once", "Twice"] });
    expect(splitModel(["x.gguf"], "y.gguf")).toEqual({ model: "y.gguf", rest: ["x.gguf"] });
  });
});

describe("resolveModel on this disk", () => {
  it("bundles a model", async () => {
    expect(await resolveModel(undefined)).toBe(BUNDLED_MODEL);
    expect(existsSync(BUNDLED_MODEL)).toBe(true);
  });

  it("takes the only GGUF of a folder, the first part of a split one, or a checkpoint", async () => {
    write("m-00001-of-00002.gguf", "m-00002-of-00002.gguf");
    expect(await resolveModel(folder)).toBe(join(folder, "m-00001-of-00002.gguf"));
    rmSync(join(folder, "m-00001-of-00002.gguf"));
    rmSync(join(folder, "m-00002-of-00002.gguf"));
    write("config.json", "model.safetensors");
    expect(await resolveModel(folder)).toBe(folder);
  });

  it("says what is wrong with a folder or a name", async () => {
    await expect(resolveModel(folder)).rejects.toThrow(
      "holds no model: expected one .gguf file, or config.json with .safetensors files, found nothing",
    );
    write("a.gguf", "b.gguf");
    await expect(resolveModel(folder)).rejects.toThrow("holds several models: a.gguf, b.gguf; name one of them");
    await expect(resolveModel("gone.gguf")).rejects.toThrow('no model "gone.gguf": there is no such file or folder');
    await expect(resolveModel("gemma")).rejects.toThrow("a Hugging Face repository is written owner/name");
  });

  it("does not count a folder whose download was cut short", () => {
    write("model-00001-of-00002.safetensors", "m.gguf.0123.part");
    expect(findModel(folder, undefined)).toBeUndefined();
  });
});

describe("chooseFiles", () => {
  const files = (...paths: string[]) => paths.map((path) => ({ path, size: 1 }));
  const choose = (paths: string[], choice?: string) =>
    chooseFiles(files(...paths), { repository: "a/b", choice }).map(({ path }) => path);

  it("prefers Q4_K_M, takes what is asked for, and all parts with the first one last", () => {
    const paths = ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-f16.gguf", "README.md"];
    expect(choose(paths)).toEqual(["m-Q4_K_M.gguf"]);
    expect(choose(paths, "q8_0")).toEqual(["m-Q8_0.gguf"]);
    expect(choose(["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"])).toEqual([
      "m-00002-of-00002.gguf",
      "m-00001-of-00002.gguf",
    ]);
    expect(() => choose(paths, "Q5")).toThrow('"Q5" matches no GGUF of a/b, which has m-Q8_0.gguf, m-Q4_K_M.gguf');
  });

  it("takes a checkpoint with config.json last", () => {
    const paths = [
      "config.json",
      "tokenizer.json",
      "model-00001-of-00001.safetensors",
      "model.safetensors.index.json",
      "pytorch_model.bin",
    ];
    expect(choose(paths)).toEqual([
      "model-00001-of-00001.safetensors",
      "model.safetensors.index.json",
      "tokenizer.json",
      "config.json",
    ]);
    expect(() => choose(["pytorch_model.bin"])).toThrow("a/b holds no model that Kvasir reads");
  });
});

describe("resolveModel from the hub", () => {
  const content = Buffer.from(Array.from({ length: 1000 }, (_, i) => i % 251));
  let server: Server;
  let requests: string[];
  /** Bytes after which the server hangs up. */
  let cutAfter: number;

  beforeEach(async () => {
    requests = [];
    cutAfter = Number.POSITIVE_INFINITY;
    server = createServer(answer);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  });
  afterEach(() => new Promise((resolve) => server.close(resolve)));

  function answer(request: IncomingMessage, response: ServerResponse): void {
    const path = request.url ?? "";
    if (path.startsWith("/api/models/a/b/tree/")) {
      response.setHeader("content-type", "application/json");
      return void response.end(JSON.stringify([{ type: "file", path: "m.gguf", size: content.length, oid: "1" }]));
    }
    if (!path.startsWith("/a/b/resolve/")) {
      response.statusCode = 404;
      return void response.end(JSON.stringify({ error: "Repository not found" }));
    }
    const [, from = "0", to] = /bytes=(\d+)-(\d*)/.exec(request.headers.range ?? "") ?? [];
    const end = to ? Number(to) + 1 : content.length;
    response.statusCode = request.headers.range === undefined ? 200 : 206;
    response.setHeader("etag", '"v1"');
    if (response.statusCode === 206) response.setHeader("content-range", `bytes ${from}-${end - 1}/${content.length}`);
    response.setHeader("content-length", end - Number(from));
    if (request.method !== "GET" || to) return void response.end(content.subarray(Number(from), end));
    requests.push(request.headers.range ?? "all");
    if (cutAfter < content.length) {
      response.write(content.subarray(0, cutAfter), () => setTimeout(() => response.destroy(), 50));
    } else response.end(content.subarray(Number(from)));
  }

  it("downloads, goes on where a broken connection left off, and asks the network only once", async () => {
    cutAfter = 400;
    await expect(resolveModel("a/b", { cacheFolder: folder })).rejects.toThrow(
      /cannot download a\/b|the connection ended early/,
    );
    const target = join(folder, "models/a/b");
    expect(readdirSync(target)).toEqual([expect.stringMatching(/^m\.gguf\.[0-9a-f]{12}\.part$/)]);
    cutAfter = Number.POSITIVE_INFINITY;
    const seen: number[] = [];
    const path = await resolveModel("a/b", {
      cacheFolder: folder,
      onProgress: ({ loadedBytes }) => seen.push(loadedBytes),
    });
    expect(path).toBe(join(target, "m.gguf"));
    expect(readFileSync(path)).toEqual(content);
    expect(requests).toEqual(["all", "bytes=400-"]);
    expect(seen.at(-1)).toBe(1000);
    vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:1");
    expect(await resolveModel("a/b", { cacheFolder: folder })).toBe(path);
  });

  it("says that a repository is not there", async () => {
    await expect(resolveModel("a/missing", { cacheFolder: folder })).rejects.toThrow(
      "Hugging Face has no repository a/missing",
    );
  });

  it("says offline where to put the files", async () => {
    vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:1");
    await expect(resolveModel("a/b", { cacheFolder: folder })).rejects.toThrow(
      new RegExp(`are you offline\\?[^]*Put its \\.gguf file[^]*${join(folder, "models", "a", "b")}`),
    );
  });

  it("stops when asked to", async () => {
    mkdirSync(join(folder, "c"));
    await expect(
      resolveModel("a/b", { cacheFolder: folder, signal: AbortSignal.abort(new Error("stop")) }),
    ).rejects.toThrow("stop");
  });
});
