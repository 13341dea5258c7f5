/**
 * One sample of a request: its tokens, prompt first, and how many of them the cache holds. It outlives preemption; its pages do not.
 */

import type { CacheSequence } from "../cache/cacheSequence.ts";
import type { EngineRequest } from "./request.ts";

/** What the scheduler schedules. */
export class Sequence {
  readonly request: EngineRequest;
  /** 0 to n - 1; tells the samples of one request apart. */
  readonly sampleIndex: number;
  /** Order of arrival of the request; earlier ones are served first and preempted last. */
  readonly arrival: number;
  readonly numPromptTokens: number;
  /** Cached prefixes are shared under the same salt only. */
  readonly cacheSalt: string;
  /** Prompt and generated tokens; only the first `numTokens` entries mean anything. */
  tokens: Int32Array;
  numTokens: number;
  /** Tokens whose keys and values are in the cache, or will be when the step now being planned has run. */
  numComputedTokens = 0;
  /** Prompt rows whose log-probabilities were reported, so that a recomputed prefill does not report them again. */
  numReportedRows = 0;
  /** Prompt tokens that the cache had when the sample was first admitted; undefined until then. */
  numCachedTokens: number | undefined;
  /** Present while running. */
  kv: CacheSequence | undefined;

  constructor(request: EngineRequest, sampleIndex: number, arrival: number, cacheSalt = "") {
    this.request = request;
    this.sampleIndex = sampleIndex;
    this.arrival = arrival;
    this.numPromptTokens = request.promptTokens.length;
    this.cacheSalt = cacheSalt;
    this.tokens = request.promptTokens.slice();
    this.numTokens = this.numPromptTokens;
  }

  get numGeneratedTokens(): number {
    return this.numTokens - this.numPromptTokens;
  }

  /** Prompt rows still to be reported: row p answers for prompt token p + 1, so the last row answers for none. */
  get numUnreportedRows(): number {
    return this.request.sampling.promptLogprobs === undefined ? 0 : this.numPromptTokens - 1 - this.numReportedRows;
  }

  append(tokenId: number): void {
    if (this.numTokens === this.tokens.length) {
      const grown = new Int32Array(Math.max(16, 2 * this.tokens.length));
      grown.set(this.tokens);
      this.tokens = grown;
    }
    this.tokens[this.numTokens++] = tokenId;
  }

  /** Served before `other`: by arrival, and samples of one request by index. */
  isBefore(other: Sequence): boolean {
    return this.arrival < other.arrival || (this.arrival === other.arrival && this.sampleIndex < other.sampleIndex);
  }
}
