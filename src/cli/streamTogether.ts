/** Runs several requests at once and shows their texts as they grow, with the engine's figures. Where they are shown is the board's. */

import type { Engine } from "../engine/index.ts";
import type { EngineStats, FinishReason, GenerateRequest, Logprobs, Sample, Timing, Usage } from "../engine/types.ts";
import type { Board } from "./board.ts";
import { formatBytes, formatInteger, formatRate, plural } from "./figures.ts";

const FIGURES_INTERVAL_MS = 150;

/** The whole texts and how the engine did. */
export interface StreamedTexts {
  /** For each request its samples. */
  readonly samples: readonly (readonly Sample[])[];
  /** Seconds from the first request to the last token. */
  readonly seconds: number;
  readonly mostUsedPages: number;
  readonly stats: EngineStats;
}

/**
 * Starts all `requests` and shows sample s of request r in lane r * n + s of `board`, where n is the samples of a request. Rejects with
 * what the first failing request throws; the others are cancelled.
 */
export async function streamTogether(
  engine: Engine,
  requests: readonly GenerateRequest[],
  board: Board,
  signal: AbortSignal,
): Promise<StreamedTexts> {
  const start = performance.now();
  const failure = new AbortController();
  const anyEnd = AbortSignal.any([signal, failure.signal]);
  let mostUsedPages = 0;
  let generated = 0;
  const before = await engine.stats();
  let stats = before;
  const lanesPerRequest = requests[0]?.n ?? 1;
  const watch = async (): Promise<void> => {
    stats = await engine.stats();
    mostUsedPages = Math.max(mostUsedPages, stats.usedPages);
    // The engine counts from the load on; what is shown is of these texts alone.
    const prefixHitTokens = stats.prefixHitTokens - before.prefixHitTokens;
    const promptTokens = stats.promptTokens - before.promptTokens;
    const tokensPerSecond = generated / ((performance.now() - start) / 1000);
    board.showFigures(figuresLine({ ...stats, prefixHitTokens, promptTokens }, tokensPerSecond));
  };
  const timer = setInterval(() => watch().catch((error: unknown) => failure.abort(error)), FIGURES_INTERVAL_MS);
  try {
    const samples = await Promise.all(
      requests.map(async (request, index) => {
        try {
          return await streamOne(engine, { ...request, signal: anyEnd }, board, index * lanesPerRequest, (count) => {
            generated += count;
          });
        } catch (error) {
          failure.abort(error);
          throw error;
        }
      }),
    );
    const seconds = (performance.now() - start) / 1000;
    await watch();
    return { samples, seconds, mostUsedPages, stats };
  } finally {
    clearInterval(timer);
  }
}

interface GrowingSample {
  text: string;
  tokenIds: number[];
  logprobs: Logprobs[];
  finishReason: FinishReason;
  stopReason?: string | number;
  usage: Usage;
  timing: Timing;
}

async function streamOne(
  engine: Engine,
  request: GenerateRequest,
  board: Board,
  firstLane: number,
  onTokens: (count: number) => void,
): Promise<Sample[]> {
  const growing = new Map<number, GrowingSample>();
  for await (const chunk of engine.generate(request)) {
    const lane = firstLane + chunk.index;
    const { usage, timing } = chunk;
    let sample = growing.get(chunk.index);
    if (sample === undefined) {
      sample = { text: "", tokenIds: [], logprobs: [], finishReason: "aborted", usage, timing };
      growing.set(chunk.index, sample);
    }
    sample.text += chunk.text;
    sample.tokenIds.push(...chunk.tokenIds);
    sample.logprobs.push(...(chunk.logprobs ?? []));
    Object.assign(sample, { usage, timing });
    onTokens(chunk.tokenIds.length);
    board.append(lane, chunk.text);
    board.annotate(lane, `${plural(usage.completionTokens, "token")}, ${formatRate(timing.tokensPerSecond)} tokens/s`);
    if (chunk.finishReason === undefined) continue;
    sample.finishReason = chunk.finishReason;
    if (chunk.stopReason !== undefined) sample.stopReason = chunk.stopReason;
    board.finish(lane);
  }
  return [...growing].map(([index, { logprobs, ...sample }]) => ({
    index,
    ...sample,
    ...(request.logprobs === undefined ? {} : { logprobs }),
  }));
}

/** The engine's state in one line: tokens per second in all, prefix-cache hits, cache pages and bytes. */
export function figuresLine(stats: EngineStats, tokensPerSecond: number): string {
  return [
    `${formatRate(tokensPerSecond)} tokens/s in all`,
    `${plural(stats.numRunning, "text")} running${stats.numWaiting > 0 ? `, ${stats.numWaiting} waiting` : ""}`,
    `prefix cache ${formatInteger(stats.prefixHitTokens)} of ${formatInteger(stats.promptTokens)} prompt tokens`,
    `${formatInteger(stats.usedPages)} of ${plural(stats.numPages, "page")}, ${formatBytes(stats.usedCacheBytes)}`,
  ].join(" | ");
}
