/** The model that is measured, and the work that a token costs in it by the shapes of its matrices. */

import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { openModel } from "../src/models/config/index.ts";
import { locate } from "../src/models/formats/file.node.ts";

const pathOf = (relative: string): string => fileURLToPath(new URL(`../${relative}`, import.meta.url));
const GEMMA = "models/gemma-3-270m-q4_k_m.gguf";
const BUNDLED = "assets/tales-5m-q8_0.gguf";

export interface ModelWork {
  readonly path: string;
  /** What tables call it. */
  readonly label: string;
  readonly fileBytes: number;
  readonly contextLength: number;
  readonly vocabSize: number;
  readonly eosTokenIds: readonly number[];
  /** Stored bytes of all tensors that a decode step reads: everything, but of an embedding only the row when it is not the output too. */
  readonly bytesPerStep: number;
  /** Two for each multiply-add of the layers' matrices with one token. */
  readonly operationsPerToken: number;
  /** The same of the output matrix with one row. */
  readonly operationsPerLogits: number;
}

/** `path`, else Gemma where `npm run fetch:gemma` put it, else the bundled model. */
export async function describeModel(path: string | undefined): Promise<ModelWork> {
  const chosen = path ?? (existsSync(pathOf(GEMMA)) ? pathOf(GEMMA) : pathOf(BUNDLED));
  const { folder, fileName } = await locate(chosen);
  const { config, tensors, weights } = await openModel(folder, fileName);
  await weights.close();
  let [bytesPerStep, operationsPerToken, operationsPerLogits] = [0, 0, 0];
  const output = config.tieWordEmbeddings ? "embedding" : "output";
  for (const [name, { shape, numBytes }] of tensors) {
    if (name === "embedding" && name !== output) continue;
    bytesPerStep += numBytes;
    if (shape.length !== 2) continue;
    const operations = 2 * shape[0] * shape[1];
    if (name === output) operationsPerLogits += operations;
    else operationsPerToken += operations;
  }
  return {
    path: chosen,
    label: fileName ?? folder.label,
    fileBytes: weights.numBytes,
    contextLength: config.maxPositionEmbeddings,
    vocabSize: config.vocabSize,
    eosTokenIds: config.eosTokenIds,
    bytesPerStep,
    operationsPerToken,
    operationsPerLogits,
  };
}

/** Tokens that no model stops at, the same for the same seed: a linear congruential generator (Numerical Recipes). */
export function randomTokens({ vocabSize, eosTokenIds }: ModelWork, length: number, seed: number): number[] {
  const tokens: number[] = [];
  let state = (seed * 2_654_435_761) >>> 0;
  while (tokens.length < length) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const token = Math.floor((state / 2 ** 32) * vocabSize);
    if (!eosTokenIds.includes(token)) tokens.push(token);
  }
  return tokens;
}
