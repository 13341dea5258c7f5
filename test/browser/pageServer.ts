/**
 * Serves the page of this folder, the built package and the bundled model, and takes the page's report. Unbundled modules are given out
 * with their imports as addresses: bare names cannot be left to an import map, because import maps do not reach into workers.
 */

import { readFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, resolve, sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { transformWithOxc } from "vite";
import type { PageReport } from "./pageReport.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html",
  ".ts": "text/javascript",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
};

export interface PageServer {
  readonly url: string;
  /** The next report that a page sends. */
  readonly report: Promise<PageReport>;
  close(): void;
}

export interface PageServerOptions {
  /** Whether to send the headers with which a page may share memory between threads. */
  readonly isIsolated: boolean;
  /** A folder with the page as a bundle, served instead of the modules. */
  readonly bundle?: string;
  /** A path that is not there. */
  readonly missing?: string;
}

/** Serves on a free port of this machine. */
export async function servePage({ isIsolated, bundle, missing }: PageServerOptions): Promise<PageServer> {
  const report = Promise.withResolvers<PageReport>();
  const server = createServer((request, response) => {
    if (isIsolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    answer(request, response).catch((error) => response.writeHead(404).end(String(error)));
  });
  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = new URL(request.url ?? "/", "http://localhost").pathname;
    if (request.method === "POST" && path === "/report") {
      report.resolve(JSON.parse(await textOf(request)));
      response.end();
      return;
    }
    if (path === missing) throw new Error(`${path} is missing`);
    const content = await contentOf(path, bundle);
    response.setHeader("Content-Type", TYPES[extname(path)] ?? "application/octet-stream");
    response.end(content);
  }
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  const { port } = server.address() as AddressInfo; // a server that listens on a port has one
  return {
    url: `http://127.0.0.1:${port}${bundle === undefined ? "/test/browser" : ""}/page.html`,
    report: report.promise,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

async function contentOf(path: string, bundle: string | undefined): Promise<string | Uint8Array> {
  if (bundle !== undefined && !path.startsWith("/assets/tales")) return readFile(inside(bundle, path));
  const file = inside(root, path);
  if (path.endsWith(".ts"))
    return withAddresses((await transformWithOxc(await readFile(file, "utf8"), file)).code, file);
  if (path.startsWith("/dist/") && path.endsWith(".js")) return withAddresses(await readFile(file, "utf8"), file);
  return readFile(file);
}

/** Rejects what lies outside the folder. */
function inside(folder: string, path: string): string {
  const file = resolve(folder, `.${decodeURIComponent(path)}`);
  if (!file.startsWith(resolve(folder) + sep)) throw new Error(`${path} is not served`);
  return file;
}

/** Imports of packages by their files, imports of the sources by their build. */
function withAddresses(code: string, file: string): string {
  return code.replaceAll(/\b(from|import)(\s*\(?\s*)"([^"]+)"/g, (whole, keyword, space, specifier: string) => {
    const sources = /^\.\.\/\.\.\/src\/(.*)\.ts$/.exec(specifier);
    if (sources !== null) return `${keyword}${space}"/dist/${sources[1]}.js"`;
    if (specifier.startsWith(".") || specifier.startsWith("node:")) return whole;
    const resolved = fileURLToPath(import.meta.resolve(specifier, pathToFileURL(file)));
    return `${keyword}${space}"/${resolved.slice(root.length)}"`;
  });
}

async function textOf(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  for await (const part of request) parts.push(part);
  return Buffer.concat(parts).toString("utf8");
}
