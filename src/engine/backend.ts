/** What the engine needs of a loaded model. `models` provides it; tests provide a fake. */

import type { Tokenizer } from "../models/tokenizer/tokenizer.ts";
import type { PlainLoadOptions } from "./messages.ts";
import type { ModelRunner } from "./runner.ts";
import type { LoadProgress, ModelDescription, ModelFiles } from "./types.ts";

/** The part of a tokenizer that the engine uses. */
export type EngineTokenizer = Pick<Tokenizer, "encode" | "decode" | "chatTemplate"> & {
  incrementalDecoder(options: { readonly skipSpecialTokens: boolean; readonly isContinuation: boolean }): {
    push(tokenId: number): string;
    flush(): string;
  };
};

/** A model, ready to run, and the words for it. */
export interface EngineBackend {
  readonly runner: ModelRunner;
  readonly tokenizer: EngineTokenizer;
  readonly description: ModelDescription;
  /** Bytes of the key/value cache. */
  readonly cacheBytes: number;
  readonly maxNumBatchedTokens: number;
  readonly maxNumSeqs: number;
}

/** Loads a model in the place where the engine runs. Rejects with what `Engine.load` is to reject with. */
export type LoadBackend = (
  model: string | ModelFiles,
  options: PlainLoadOptions,
  onProgress: (progress: LoadProgress) => void,
) => Promise<EngineBackend>;
