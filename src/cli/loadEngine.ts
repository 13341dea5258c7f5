/** A running engine for a command: the model is found or downloaded, loaded with a progress line, and closed again whatever happens. */

import { Engine } from "../engine/index.ts";
import type { LoadOptions } from "../engine/types.ts";
import { ProgressLine } from "./progressLine.ts";
import { resolveModel } from "./resolveModel.ts";

/** An engine that a command may use, with how long loading took. */
export interface LoadedEngine {
  readonly engine: Engine;
  /** What was loaded: a file or folder. */
  readonly path: string;
  /** Seconds from the request to load until the engine answered, downloads not counted. */
  readonly loadSeconds: number;
}

/** Loads `model` (undefined: the bundled one), runs `work` with it and closes it. */
export async function withEngine<T>(
  model: string | undefined,
  options: LoadOptions,
  signal: AbortSignal,
  work: (loaded: LoadedEngine) => Promise<T>,
): Promise<T> {
  const progress = new ProgressLine();
  let engine: Engine | undefined;
  try {
    const path = await resolveModel(model, { signal, onProgress: (state) => progress.show(state) });
    const start = performance.now();
    engine = await Engine.load(path, { ...options, signal, onProgress: (state) => progress.show(state) });
    const loadSeconds = (performance.now() - start) / 1000;
    progress.clear();
    return await work({ engine, path, loadSeconds });
  } finally {
    progress.clear();
    await engine?.close();
  }
}
