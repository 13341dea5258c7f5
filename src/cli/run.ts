/** `kvasir run`: continues one prompt, or several together. */

import { styleText } from "node:util";
import type { GenerateRequest, Sample } from "../engine/types.ts";
import { type Board, createBoard } from "./board.ts";
import { defineCommand, jsonOption, modelOption, modelWord } from "./defineCommand.ts";
import { UsageError } from "./exit.ts";
import { formatRate, formatSeconds, plural } from "./figures.ts";
import { type LoadedEngine, withEngine } from "./loadEngine.ts";
import { splitModel } from "./modelWords.ts";
import { loadOptions, readLoadOptions, readNumber, readSampling, samplingOptions } from "./options.ts";
import { readStandardInput } from "./standardInput.ts";
import { streamTogether } from "./streamTogether.ts";
import { printable } from "./textLayout.ts";

export const run = defineCommand({
  name: "run",
  description: "continues one prompt, or several together; reads standard input when there is none",
  options: {
    MODEL: modelWord,
    prompt: { type: "positional", required: false, description: "one or more texts to continue" },
    model: modelOption,
    json: jsonOption,
    chat: { type: "boolean", description: "each prompt is a message to answer, through the model's chat template" },
    samples: { type: "string", description: "continuations of each prompt", valueHint: "n", alias: "n" },
    logprobs: {
      type: "string",
      description: "with --json: log-probabilities of the chosen and the k likeliest tokens",
      valueHint: "k",
    },
    ...samplingOptions,
    ...loadOptions,
  },
  async run(args, signal) {
    const { model, rest } = splitModel(args._, args.model as string | undefined);
    const sampling = readSampling(args);
    const n = readNumber(args, "samples", { least: 1, isInteger: true }) ?? 1;
    const logprobs = readNumber(args, "logprobs", { least: 0, isInteger: true });
    if (logprobs !== undefined && args.json !== true) throw new UsageError("--logprobs is shown with --json only");
    const options = readLoadOptions(args);
    const prompts = rest.length > 0 ? rest : [await readStandardInput("a prompt")];
    const requests = prompts.map(
      (text): GenerateRequest => ({
        ...sampling,
        n,
        prompt: args.chat === true ? [{ role: "user", content: text }] : text,
        ...(logprobs === undefined ? {} : { logprobs }),
      }),
    );
    await withEngine(model, options, signal, async (loaded) => {
      if (args.json === true) await runToJson(loaded, prompts, requests, signal);
      else if (prompts.length * n === 1) await runOne(loaded, prompts[0], requests[0], signal);
      else await runTogether(loaded, prompts, requests, n, signal);
    });
  },
});

async function runOne(
  { engine }: LoadedEngine,
  prompt: string,
  request: GenerateRequest,
  signal: AbortSignal,
): Promise<void> {
  const isTerminal = process.stdout.isTTY === true;
  if (isTerminal && typeof request.prompt === "string") process.stdout.write(styleText("dim", printable(prompt)));
  let last: Pick<Sample, "usage" | "timing"> | undefined;
  for await (const chunk of engine.generate({ ...request, signal })) {
    process.stdout.write(isTerminal ? printable(chunk.text) : chunk.text);
    last = chunk;
  }
  process.stdout.write("\n");
  if (isTerminal && last !== undefined) console.error(styleText("dim", `\n${sampleFigures(last)}`));
}

async function runTogether(
  { engine }: LoadedEngine,
  prompts: readonly string[],
  requests: readonly GenerateRequest[],
  n: number,
  signal: AbortSignal,
): Promise<void> {
  const titles = prompts.flatMap((prompt) =>
    Array.from({ length: n }, () => prompt.replaceAll(/\s+/g, " ").slice(0, 60)),
  );
  const board = createBoard(titles);
  try {
    await streamTogether(engine, requests, board, signal);
  } finally {
    board.close();
  }
}

async function runToJson(
  { engine, path, loadSeconds }: LoadedEngine,
  prompts: readonly string[],
  requests: readonly GenerateRequest[],
  signal: AbortSignal,
): Promise<void> {
  const { samples, seconds, stats } = await streamTogether(engine, requests, SILENT, signal);
  const { device, threads } = engine.describe();
  const results = prompts.map((prompt, index) => ({ prompt, samples: samples[index] }));
  console.log(JSON.stringify({ model: path, device, threads, loadSeconds, seconds, results, stats }, undefined, 2));
}

/** Shows nothing: the texts are printed at the end. */
const SILENT: Board = { append() {}, annotate() {}, finish() {}, showFigures() {}, close() {} };

/** `64 tokens, 98.3 tokens/s, the first after 41.0 ms (12 of 20 prompt tokens from the cache)`. */
export function sampleFigures({ usage, timing }: Pick<Sample, "usage" | "timing">): string {
  const cached =
    usage.cachedTokens > 0
      ? ` (${usage.cachedTokens} of ${plural(usage.promptTokens, "prompt token")} from the cache)`
      : "";
  return `${plural(usage.completionTokens, "token")}, ${formatRate(timing.tokensPerSecond)} tokens/s, the first after ${formatSeconds(timing.firstTokenSeconds)}${cached}`;
}
