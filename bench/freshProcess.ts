/**
 * The part of the model benchmark that needs a process of its own: loads a model once, fills its cache with sixteen sequences, and prints
 * how long the load took and how much memory the process ever held.
 *
 *     node bench/freshProcess.ts MODEL THREADS
 */

import { readFileSync } from "node:fs";
import { Engine } from "../src/engine/index.ts";
import { describeModel, randomTokens } from "./modelFile.ts";

export interface FreshProcess {
  readonly loadSeconds: number;
  readonly peakBytes: number;
  readonly cacheBytes: number;
}

const SEQUENCES = 16;
const PROMPT_TOKENS = 48;
const GENERATED_TOKENS = 16;

async function main(path: string, threads: number): Promise<FreshProcess> {
  const start = performance.now();
  // As many tokens as the requests below fill: untouched pages would be counted and not used.
  const maxNumTokens = SEQUENCES * (PROMPT_TOKENS + GENERATED_TOKENS);
  const engine = await Engine.load(path, { threads, maxNumTokens });
  const loadSeconds = (performance.now() - start) / 1000;
  const work = await describeModel(path);
  await Promise.all(
    Array.from({ length: SEQUENCES }, (_, i) =>
      engine.complete({
        prompt: randomTokens(work, PROMPT_TOKENS, i + 1),
        maxTokens: GENERATED_TOKENS,
        ignoreEos: true,
      }),
    ),
  );
  const { cacheBytes } = await engine.stats();
  await engine.close();
  return { loadSeconds, peakBytes: peakBytes(), cacheBytes };
}

/** The kernel's own mark where it keeps one: `maxRSS` of a child begins with its parent's. */
function peakBytes(): number {
  if (process.platform === "linux") {
    const mark = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    if (mark !== null) return Number(mark[1]) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}

const [path, threads] = process.argv.slice(2);
console.log(JSON.stringify(await main(path, Number(threads))));
