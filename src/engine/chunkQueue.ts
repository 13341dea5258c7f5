/** The caller's end of one request: chunks go in as they arrive, and come out of an async iterator. */

import type { GenerateChunk } from "./types.ts";

/** The stream of one request. Iterate it once. */
export class ChunkQueue implements AsyncIterableIterator<GenerateChunk> {
  readonly #onEnd: (isAbandoned: boolean) => void;
  #chunks: GenerateChunk[] = [];
  #end: { readonly error?: unknown } | undefined;
  #waiting: { resolve(result: IteratorResult<GenerateChunk>): void; reject(error: unknown): void }[] = [];

  /** `onEnd` is called once; `isAbandoned` when the caller has left the loop before the end. */
  constructor(onEnd: (isAbandoned: boolean) => void) {
    this.#onEnd = onEnd;
  }

  push(chunk: GenerateChunk): void {
    if (this.#end !== undefined) return;
    const waiting = this.#waiting.shift();
    if (waiting === undefined) this.#chunks.push(chunk);
    else waiting.resolve({ done: false, value: chunk });
  }

  /** Nothing more will come; chunks that were not yet taken still come out. */
  finish(): void {
    this.#endWith({}, false);
  }

  /** Ends with an error, which the caller gets once, and at once: chunks that were not yet taken are dropped. */
  fail(error: unknown): void {
    if (this.#end !== undefined) return;
    this.#chunks = [];
    const waiting = this.#waiting.shift();
    this.#endWith(waiting === undefined ? { error } : {}, false);
    waiting?.reject(error);
  }

  next(): Promise<IteratorResult<GenerateChunk>> {
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) return Promise.resolve({ done: false, value: chunk });
    if (this.#end === undefined) return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
    if (!("error" in this.#end)) return Promise.resolve({ done: true, value: undefined });
    const { error } = this.#end;
    this.#end = {}; // an iterator throws once, then is done
    return Promise.reject(error);
  }

  return(): Promise<IteratorResult<GenerateChunk>> {
    this.#chunks = [];
    this.#endWith({}, true);
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  #endWith(end: { readonly error?: unknown }, isAbandoned: boolean): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    for (const waiting of this.#waiting.splice(0)) waiting.resolve({ done: true, value: undefined });
    this.#onEnd(isAbandoned);
  }
}
