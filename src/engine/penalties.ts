/**
 * Logit bias and the repetition, presence and frequency penalties of one sample. They change only the logits of tokens that were seen
 * or are named, so they are patched into the row in place and taken back after the draw: no copy of the row.
 */

import type { SamplingParams } from "./types.ts";

/** The tokens a sample has seen, with their counts, and what that does to a row of logits. */
export class Penalties {
  readonly #params: SamplingParams;
  /** Index of a token in the arrays below. */
  readonly #entryOf = new Map<number, number>();
  #numEntries = 0;
  #tokenIds = new Int32Array(64);
  #biases = new Float64Array(64);
  /** 1 when the token is in the prompt or the output: what the repetition penalty asks. */
  #isSeen = new Uint8Array(64);
  #outputCounts = new Int32Array(64);
  #savedLogits = new Float32Array(64);

  /** Whether these parameters change any logit. */
  static areNeeded(params: SamplingParams): boolean {
    const { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias } = params;
    return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0 || logitBias.length > 0;
  }

  constructor(params: SamplingParams, promptTokens: Int32Array) {
    this.#params = params;
    for (const { tokenId, bias } of params.logitBias) this.#biases[this.#entry(tokenId)] = bias;
    if (params.repetitionPenalty !== 1) for (const token of promptTokens) this.#isSeen[this.#entry(token)] = 1;
  }

  /** Counts a generated token. */
  addOutput(tokenId: number): void {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.#params;
    if (repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0) return;
    const entry = this.#entry(tokenId);
    this.#isSeen[entry] = 1;
    this.#outputCounts[entry]++;
  }

  /** Changes the row. `restore` must follow, with nothing in between that reads the row for anything else. */
  apply(row: Float32Array): void {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = this.#params;
    for (let i = 0; i < this.#numEntries; i++) {
      const token = this.#tokenIds[i];
      this.#savedLogits[i] = row[token];
      let logit = row[token] + this.#biases[i];
      if (this.#isSeen[i] === 1) logit = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
      const count = this.#outputCounts[i];
      if (count > 0) logit -= frequencyPenalty * count + presencePenalty;
      row[token] = logit;
    }
  }

  restore(row: Float32Array): void {
    for (let i = 0; i < this.#numEntries; i++) row[this.#tokenIds[i]] = this.#savedLogits[i];
  }

  #entry(tokenId: number): number {
    const known = this.#entryOf.get(tokenId);
    if (known !== undefined) return known;
    const entry = this.#numEntries++;
    if (entry === this.#tokenIds.length) this.#grow();
    this.#entryOf.set(tokenId, entry);
    this.#tokenIds[entry] = tokenId;
    return entry;
  }

  #grow(): void {
    const length = 2 * this.#tokenIds.length;
    this.#tokenIds = copyInto(new Int32Array(length), this.#tokenIds);
    this.#biases = copyInto(new Float64Array(length), this.#biases);
    this.#isSeen = copyInto(new Uint8Array(length), this.#isSeen);
    this.#outputCounts = copyInto(new Int32Array(length), this.#outputCounts);
    this.#savedLogits = new Float32Array(length);
  }
}

function copyInto<Array extends { set(from: Array): void }>(target: Array, from: Array): Array {
  target.set(from);
  return target;
}
