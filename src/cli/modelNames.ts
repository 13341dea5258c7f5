/** What a model may be called and where its files lie: repository names, the cache folder, the files of a folder that make a model. */

import { existsSync, readdirSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import type { LoadProgress } from "../engine/types.ts";
import { CommandError } from "./exit.ts";

/** How `resolveModel` may be watched and stopped. */
export interface ResolveOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Where downloads are kept. Default: `modelCacheFolder()`. */
  readonly cacheFolder?: string;
}

/** A Hugging Face repository, and which of its files: `owner/name`, `owner/name:Q4_K_M` or `owner/name:file.gguf`. */
export interface RepositoryName {
  readonly repository: string;
  /** Part of the wanted GGUF file's name, matched without regard to case. */
  readonly choice: string | undefined;
}

/** `$KVASIR_CACHE`, else `$XDG_CACHE_HOME/kvasir`, else `~/.cache/kvasir`; models lie below it by repository. */
export function modelCacheFolder(): string {
  const { KVASIR_CACHE, XDG_CACHE_HOME } = process.env;
  return KVASIR_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "kvasir");
}

/** The parts of a repository name, or undefined when `word` cannot be one. */
export function parseRepositoryName(word: string): RepositoryName | undefined {
  const match = /^([A-Za-z0-9][\w.-]*\/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?$/.exec(word);
  return match === null ? undefined : { repository: match[1], choice: match[2] };
}

/**
 * Whether `word` means a model rather than a prompt: it is there as a file or folder, names a weights file, or has the form of a
 * repository.
 */
export function isModelName(word: string): boolean {
  return existsSync(word) || isPathLike(word) || parseRepositoryName(word) !== undefined;
}

/** Whether `word` can only be a path: it names a weights file, or begins like one. */
export function isPathLike(word: string): boolean {
  return /\.(gguf|safetensors|bin)$/i.test(word) || /^(\.{0,2}|~)[/\\]\S*$/.test(word);
}

/**
 * The complete model in `folder`, or undefined. Downloads write the file that is looked for here last (config.json, the only or the
 * first GGUF), so that a folder left half-way does not count.
 */
export function findModel(folder: string, choice: string | undefined): string | undefined {
  const names = readdirSync(folder);
  const wanted = choice?.toLowerCase();
  const isCheckpoint = names.includes("config.json") && names.some((name) => name.endsWith(".safetensors"));
  if (wanted === undefined && isCheckpoint) return folder;
  const files = names.filter((name) => name.toLowerCase().endsWith(".gguf") && isFirstPart(name));
  const matching = files.filter((name) => wanted === undefined || name.toLowerCase().includes(wanted));
  if (matching.length > 1) {
    throw new CommandError(`${folder} holds several models: ${matching.join(", ")}; name one of them`);
  }
  return matching.length === 1 ? join(folder, matching[0]) : undefined;
}

/** Whether a GGUF is whole or the first of `-00001-of-00003` parts. */
export function isFirstPart(name: string): boolean {
  return !/-(?!00001)\d{5}-of-\d{5}\.gguf$/i.test(name);
}
