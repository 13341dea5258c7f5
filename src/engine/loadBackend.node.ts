/** Loads a model in Node: from a path to a file or a folder, or from files given as such. */

import { locate } from "../models/formats/file.node.ts";
import type { LoadBackend } from "./backend.ts";
import { loadBackendFrom, loadBackend as loadFromFiles } from "./loadBackend.ts";

/** Rejects with FormatError for a path at which there is no model, and with what loading throws. */
export const loadBackend: LoadBackend = async (model, options, onProgress) => {
  if (typeof model !== "string") return loadFromFiles(model, options, onProgress);
  const { folder, fileName } = await locate(model);
  return loadBackendFrom(folder, fileName, options, onProgress);
};
