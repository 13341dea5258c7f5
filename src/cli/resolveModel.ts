/**
 * From the word a person typed to files on this disk: a path, a folder, or a Hugging Face repository that is downloaded once. Reading
 * the files is the models layer's.
 */

import { existsSync, readdirSync, statSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { CommandError } from "./exit.ts";
import { BUNDLED_MODEL } from "./invocation.ts";
import { findModel, isPathLike, modelCacheFolder, parseRepositoryName, type ResolveOptions } from "./modelNames.ts";

/**
 * The path of the model that `word` means: a weights file, or a folder with config.json and safetensors. Undefined means the bundled
 * model. Throws CommandError saying what was looked for, and offline where to put the files.
 */
export async function resolveModel(word: string | undefined, options: ResolveOptions = {}): Promise<string> {
  if (word === undefined) return BUNDLED_MODEL;
  const path = word.startsWith("~/") ? join(homedir(), word.slice(2)) : word;
  if (existsSync(path)) return statSync(path).isDirectory() ? modelInFolder(path) : path;
  const name = isPathLike(word) ? undefined : parseRepositoryName(word);
  if (name === undefined) {
    throw new CommandError(
      `no model "${word}": there is no such file or folder${isPathLike(word) ? "" : ", and a Hugging Face repository is written owner/name"}`,
    );
  }
  const folder = join(options.cacheFolder ?? modelCacheFolder(), "models", ...name.repository.split("/"));
  const found = existsSync(folder) ? findModel(folder, name.choice) : undefined;
  if (found !== undefined) return found;
  // Loaded only here: most commands never need the hub.
  const { downloadRepository } = await import("./hubDownload.ts");
  return downloadRepository(name, folder, options);
}

/** The model in `folder`, which a person named: throws CommandError saying what is missing. */
function modelInFolder(folder: string): string {
  const found = findModel(folder, undefined);
  if (found !== undefined) return found;
  throw new CommandError(
    `${folder} holds no model: expected one .gguf file, or config.json with .safetensors files, found ${listed(folder)}`,
  );
}

function listed(folder: string): string {
  const names = readdirSync(folder);
  return names.length === 0 ? "nothing" : names.slice(0, 8).join(", ") + (names.length > 8 ? ", ..." : "");
}
