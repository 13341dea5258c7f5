/**
 * Downloads the files of a Hugging Face repository that make a model, each resumable: bytes are appended to `<name>.part`, which gets
 * its name when it is whole. Which word means a repository is resolveModel.ts's.
 */

import { createHash } from "node:crypto";
import { createWriteStream, existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileDownloadInfo, listFiles } from "@huggingface/hub";
import { CommandError } from "./exit.ts";
import { isFirstPart, type RepositoryName, type ResolveOptions } from "./modelNames.ts";

/** Quantisations in the order in which one is taken when none was asked for. */
const PREFERRED = ["q4_k_m", "q4_0", "q5_k_m", "q4_k_s", "q8_0", "q6_k", "iq4_xs", "q3_k_m", "f16", "bf16", "f32"];
/** Small files that belong to a checkpoint, when the repository has them. */
const COMPANIONS = [
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "chat_template.jinja",
];

/** A file of a repository. */
export interface RemoteFile {
  readonly path: string;
  readonly size: number;
}

/**
 * Which of `files` to download, in order; the last one's presence means that all are there. A GGUF (all parts of it) if the repository
 * has any, else a safetensors checkpoint. Throws CommandError when neither fits.
 */
export function chooseFiles(files: readonly RemoteFile[], { repository, choice }: RepositoryName): RemoteFile[] {
  const ggufs = files.filter(({ path }) => /\.gguf$/i.test(path) && !/mmproj/i.test(path) && isFirstPart(path));
  const byName = new Map(files.map((file) => [file.path, file]));
  if (choice !== undefined || (ggufs.length > 0 && !byName.has("model.safetensors"))) {
    return withLaterParts(chooseGguf(ggufs, repository, choice), files);
  }
  const config = byName.get("config.json");
  const isSharded = byName.has("model.safetensors.index.json");
  const weights = files.filter(({ path }) =>
    (isSharded ? /^model-.*\.safetensors$/ : /^model\.safetensors$/).test(path),
  );
  if (config === undefined || weights.length === 0) {
    const found = files.map(({ path }) => path).slice(0, 8);
    throw new CommandError(
      `${repository} holds no model that Kvasir reads (GGUF, or config.json with model.safetensors); it has ${found.join(", ")}`,
    );
  }
  const companions = ["model.safetensors.index.json", ...COMPANIONS].flatMap((name) => byName.get(name) ?? []);
  return [...weights, ...companions, config];
}

function chooseGguf(ggufs: readonly RemoteFile[], repository: string, choice: string | undefined): RemoteFile {
  const names = ggufs.map(({ path }) => path).join(", ");
  if (choice !== undefined) {
    const matching = ggufs.filter(({ path }) => basename(path).toLowerCase().includes(choice.toLowerCase()));
    const exact = matching.find(({ path }) => basename(path).toLowerCase() === choice.toLowerCase());
    if (exact !== undefined) return exact;
    if (matching.length === 1) return matching[0];
    throw new CommandError(
      `"${choice}" matches ${matching.length === 0 ? "no" : "several"} GGUF of ${repository}, which has ${names || "none"}`,
    );
  }
  for (const quantisation of PREFERRED) {
    const found = ggufs.find(({ path }) => path.toLowerCase().includes(quantisation));
    if (found !== undefined) return found;
  }
  if (ggufs.length === 1) return ggufs[0];
  throw new CommandError(`${repository} has several GGUF files; name one as ${repository}:FILE: ${names}`);
}

/** `first`, preceded by the other parts when it is one of several. */
function withLaterParts(first: RemoteFile, files: readonly RemoteFile[]): RemoteFile[] {
  const stem = /^(.*)-00001-of-\d{5}\.gguf$/i.exec(first.path)?.[1];
  if (stem === undefined) return [first];
  return [...files.filter(({ path }) => path !== first.path && path.startsWith(`${stem}-`)), first];
}

/**
 * Downloads what makes a model of the repository into `folder` and gives the path to load: the GGUF, or the folder of a checkpoint.
 * `HF_TOKEN` and `HF_ENDPOINT` are honoured. Throws CommandError when the hub cannot be reached or does not have it.
 */
export async function downloadRepository(
  name: RepositoryName,
  folder: string,
  options: ResolveOptions,
): Promise<string> {
  const { repository } = name;
  const { HF_TOKEN, HF_ENDPOINT } = process.env;
  const access = { ...(HF_TOKEN ? { accessToken: HF_TOKEN } : {}), ...(HF_ENDPOINT ? { hubUrl: HF_ENDPOINT } : {}) };
  const { signal, onProgress } = options;
  const cancellable: typeof fetch = (input, init) => fetch(input, signal === undefined ? init : { ...init, signal });
  try {
    const files: RemoteFile[] = [];
    for await (const { type, path, size } of listFiles({
      repo: repository,
      recursive: true,
      fetch: cancellable,
      ...access,
    })) {
      if (type === "file") files.push({ path, size });
    }
    const chosen = chooseFiles(files, name);
    const totalBytes = chosen.reduce((sum, { size }) => sum + size, 0);
    let loadedBytes = 0;
    mkdirSync(folder, { recursive: true });
    for (const { path, size } of chosen) {
      const target = join(folder, basename(path));
      if (!(existsSync(target) && statSync(target).size === size)) {
        const source = await fileDownloadInfo({ repo: repository, path, fetch: cancellable, ...access });
        if (source === null) throw new CommandError(`${repository} no longer has ${path}`);
        const report = (bytes: number): void =>
          onProgress?.({ stage: "download", loadedBytes: loadedBytes + bytes, totalBytes });
        await downloadResumable({ ...source, accessToken: HF_TOKEN, fetch: cancellable }, target, report);
      }
      loadedBytes += size;
    }
    const entry = basename(chosen[chosen.length - 1].path);
    return entry === "config.json" ? folder : join(folder, entry);
  } catch (error) {
    if (error instanceof CommandError || signal?.aborted) throw error;
    throw new CommandError(explainFailure(error, repository, folder), { cause: error });
  }
}

/** Where a file's bytes are, as the hub says. */
interface DownloadSource {
  readonly url: string;
  readonly size: number;
  readonly etag: string;
  readonly accessToken: string | undefined;
  readonly fetch: typeof fetch;
}

/** Fetches the missing bytes of `target`. The part file carries the version in its name: parts of different versions never mix. */
export async function downloadResumable(
  source: DownloadSource,
  target: string,
  report: (bytes: number) => void,
): Promise<void> {
  const version = createHash("sha256").update(source.etag).digest("hex").slice(0, 12);
  const part = `${target}.${version}.part`;
  for (const other of readdirSync(dirname(target))) {
    if (other.startsWith(`${basename(target)}.`) && other.endsWith(".part") && other !== basename(part))
      rmSync(join(dirname(target), other));
  }
  let offset = existsSync(part) ? statSync(part).size : 0;
  if (offset < source.size || source.size === 0) {
    const headers: Record<string, string> = {
      ...(source.accessToken ? { Authorization: `Bearer ${source.accessToken}` } : {}),
    };
    if (offset > 0) headers.Range = `bytes=${offset}-`;
    const response = await source.fetch(source.url, { headers });
    if (!response.ok || response.body === null)
      throw new Error(`${source.url} answered ${response.status} ${response.statusText}`);
    // A server that does not know ranges sends everything.
    if (response.status !== 206) offset = 0;
    let received = offset;
    const counted = async function* (chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
      for await (const chunk of chunks) {
        received += chunk.length;
        report(received);
        yield chunk;
      }
    };
    await pipeline(counted(response.body), createWriteStream(part, { flags: offset === 0 ? "w" : "a" }));
  }
  const got = statSync(part).size;
  if (got !== source.size) {
    if (got > source.size) rmSync(part);
    throw new CommandError(
      `${basename(target)} has ${got} bytes of ${source.size}: the connection ended early; the same command goes on from there`,
    );
  }
  renameSync(part, target);
}

function explainFailure(error: unknown, repository: string, folder: string): string {
  const status = typeof error === "object" && error !== null && "statusCode" in error ? error.statusCode : undefined;
  if (status === 401 || status === 403) {
    return `Hugging Face does not give out ${repository} (${status}): it does not exist, or asks for a token in HF_TOKEN and for its terms to be accepted on huggingface.co/${repository}`;
  }
  if (status === 404) return `Hugging Face has no repository ${repository}`;
  const reason =
    error instanceof Error ? (error.cause instanceof Error ? error.cause.message : error.message) : String(error);
  return `cannot download ${repository} from Hugging Face, are you offline? (${reason})\nPut its .gguf file, or config.json, tokenizer.json and the .safetensors files, into\n  ${folder}\nand run the command again, or name a file on this machine`;
}
