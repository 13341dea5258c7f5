/**
 * A model for tests of the engine core. Its logits are a hash of the whole text before them, which it reads back from the "cache" it keeps:
 * one token per slot. So whoever mixes up a page, a slot or a length gets other tokens. It checks every batch for what a device relies on.
 */

import type { PageCopy } from "../../src/cache/kvCache.ts";
import type { EngineRequest } from "../../src/engine/request.ts";
import type { LogitsBatch, ModelRunner, RaggedBatch, SampledToken, Sampler } from "../../src/engine/runner.ts";
import type { Sequence } from "../../src/engine/sequence.ts";
import type { Logprobs, SamplingParams } from "../../src/engine/types.ts";

export const VOCAB_SIZE = 11;
/** Ends a sample. */
export const STOP_TOKEN = 0;

/** Prompts longer than this are computed another way, as by models that choose their position embedding by the length. */
export const LONG_PROMPT = 12;

/** What the model keeps of a token. */
function keep(token: number, promptLength: number): number {
  return promptLength > LONG_PROMPT ? token + VOCAB_SIZE : token;
}

/** Logits after a text that begins with a prompt of this length. */
export function logitsAfter(text: readonly number[], promptLength: number): Float32Array {
  return logitsOf(text.map((token) => keep(token, promptLength)));
}

/** A fixed function of what was kept, of order 1. */
function logitsOf(text: ArrayLike<number>): Float32Array {
  let hash = 17;
  for (let index = 0; index < text.length; index++) hash = mix(hash ^ mix(text[index] + 1));
  return Float32Array.from({ length: VOCAB_SIZE }, (_, token) => mix(hash + token * 7919) / 2 ** 31);
}

function mix(value: number): number {
  let hash = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return hash ^ (hash >>> 16);
}

export interface PrefixModelOptions {
  readonly numPages: number;
  readonly pageSize: number;
  readonly maxPositions?: number;
  /** Called within each step, with its number; may throw, as a device may fail. */
  readonly duringStep?: (step: number) => void;
}

export class PrefixModel implements ModelRunner {
  readonly vocabSize = VOCAB_SIZE;
  readonly maxPositions: number;
  readonly pageSize: number;
  readonly numPages: number;
  readonly batches: { numTokens: number; numSeqs: number; numRows: number }[] = [];
  readonly #slots: Int32Array;
  readonly #duringStep: (step: number) => void;

  constructor({ numPages, pageSize, maxPositions = 1000, duringStep = () => {} }: PrefixModelOptions) {
    this.numPages = numPages;
    this.pageSize = pageSize;
    this.maxPositions = maxPositions;
    this.#slots = new Int32Array(numPages * pageSize).fill(-1);
    this.#duringStep = duringStep;
  }

  cacheVariant(promptLength: number): string {
    return promptLength > LONG_PROMPT ? "long" : "";
  }

  copyPages(copies: readonly PageCopy[]): void {
    for (const { from, to } of copies)
      this.#slots.copyWithin(to * this.pageSize, from * this.pageSize, (from + 1) * this.pageSize);
  }

  async execute(batch: RaggedBatch): Promise<LogitsBatch> {
    this.#check(batch);
    this.batches.push({ numTokens: batch.numTokens, numSeqs: batch.numSeqs, numRows: batch.logitsRows.length });
    for (let sequence = 0; sequence < batch.numSeqs; sequence++) {
      for (let row = batch.queryIndptr[sequence]; row < batch.queryIndptr[sequence + 1]; row++) {
        this.#slots[batch.slotMapping[row]] = keep(batch.tokenIds[row], batch.promptLens?.[sequence] ?? 0);
      }
    }
    const rows = Array.from(batch.logitsRows, (row) => logitsOf(this.#textAt(batch, row)));
    await Promise.resolve();
    this.#duringStep(this.batches.length);
    return { numRows: rows.length, vocabSize: VOCAB_SIZE, row: (index) => rows[index] };
  }

  close(): void {}

  #textAt(batch: RaggedBatch, row: number): number[] {
    const sequence = batch.queryIndptr.findIndex((end, index) => index > 0 && row < end) - 1;
    return Array.from({ length: batch.positions[row] + 1 }, (_, position) => {
      const page = batch.blockTables[sequence * batch.maxPages + Math.floor(position / this.pageSize)];
      return this.#slots[page * this.pageSize + (position % this.pageSize)];
    });
  }

  #check(batch: RaggedBatch): void {
    const { numTokens, numSeqs, queryIndptr, kvLens, positions, slotMapping, blockTables, maxPages } = batch;
    const demand = (holds: boolean, what: string) => {
      if (!holds) throw new Error(`a bad batch: ${what}`);
    };
    demand(
      batch.tokenIds.length === numTokens && positions.length === numTokens && slotMapping.length === numTokens,
      "flat lengths",
    );
    demand(queryIndptr.length === numSeqs + 1 && kvLens.length === numSeqs, "sequence lengths");
    demand(blockTables.length === numSeqs * maxPages, "table length");
    demand(queryIndptr[0] === 0 && queryIndptr[numSeqs] === numTokens, "queryIndptr ends");
    demand(new Set(slotMapping).size === numTokens, "a slot is written twice");
    demand(
      batch.logitsRows.every((row, index) => row < numTokens && (index === 0 || row > batch.logitsRows[index - 1])),
      "rows ascend",
    );
    for (let sequence = 0; sequence < numSeqs; sequence++) {
      const [begin, end] = [queryIndptr[sequence], queryIndptr[sequence + 1]];
      demand(end > begin && kvLens[sequence] <= this.maxPositions, "a sequence without tokens, or too long");
      const numPages = Math.ceil(kvLens[sequence] / this.pageSize);
      const rest = blockTables.subarray(sequence * maxPages + numPages, (sequence + 1) * maxPages);
      demand(numPages <= maxPages && rest.every((page) => page === 0), "zeros after the last page");
      for (let row = begin; row < end; row++) {
        demand(positions[row] === kvLens[sequence] - (end - row), "positions count up to kvLens");
        const page = blockTables[sequence * maxPages + Math.floor(positions[row] / this.pageSize)];
        demand(slotMapping[row] === page * this.pageSize + (positions[row] % this.pageSize), "slots follow the table");
      }
    }
  }
}

/** Draws by a hash of (seed, sample, length) and the row, so that a stray row or a lost seed changes the text. Temperature 0 is greedy. */
export class PrefixSampler implements Sampler {
  sample(sequence: Sequence, logits: LogitsBatch, row: number): SampledToken {
    return { tokenId: drawToken(sequence.request, sequence.sampleIndex, sequence.numTokens, logits.row(row)) };
  }

  shouldStop(_: Sequence, tokenId: number): boolean {
    return tokenId === STOP_TOKEN;
  }

  promptLogprob(_: Sequence, logits: LogitsBatch, row: number, tokenId: number): Logprobs {
    return { tokenId, logprob: logits.row(row)[tokenId], top: [] };
  }
}

function drawToken(request: EngineRequest, sampleIndex: number, length: number, row: Float32Array): number {
  const { seed, temperature } = request.sampling;
  const noisy =
    temperature === 0
      ? row
      : row.map((logit, token) => logit + mix(mix(seed + 31 * sampleIndex) ^ mix(length * 64 + token)) / 2 ** 31);
  return noisy.indexOf(Math.max(...noisy));
}

/** What a sample must be: made token by token, without batch, cache or scheduler. */
export function generateAlone(
  request: EngineRequest,
  sampleIndex: number,
  maxComputedTokens: number,
): { tokens: number[]; reason: "stop" | "length" } {
  const text = Array.from(request.promptTokens);
  const tokens: number[] = [];
  while (tokens.length < request.maxTokens && text.length <= maxComputedTokens) {
    const token = drawToken(request, sampleIndex, text.length, logitsAfter(text, request.promptTokens.length));
    text.push(token);
    tokens.push(token);
    if (token === STOP_TOKEN) return { tokens, reason: "stop" };
  }
  return { tokens, reason: "length" };
}

export const GREEDY: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  seed: 0,
  stopTokens: new Set([STOP_TOKEN]),
  logprobs: undefined,
  promptLogprobs: undefined,
};
