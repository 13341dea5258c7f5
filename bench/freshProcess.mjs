/**
 * The part of the model benchmark that needs a process of its own: loads a model once, fills its cache with sixteen sequences, and prints
 * how long the load took and how much memory the process ever held. Plain JavaScript, because stripping types takes memory of its own,
 * which a process that runs the built package does not have.
 *
 *     node bench/freshProcess.mjs ENGINE_MODULE MODEL THREADS
 */

import { readFileSync } from "node:fs";

const SEQUENCES = 16;
const PROMPT_TOKENS = 48;
const GENERATED_TOKENS = 16;

const [engineModule, path, threads] = process.argv.slice(2);
const { Engine } = await import(engineModule);

const start = performance.now();
// As many tokens as the requests below fill: untouched pages would be counted and not used.
const maxNumTokens = SEQUENCES * (PROMPT_TOKENS + GENERATED_TOKENS);
const engine = await Engine.load(path, { threads: Number(threads), maxNumTokens });
const loadSeconds = (performance.now() - start) / 1000;
const { vocabSize } = engine.describe();
const prompt = (sequence) =>
  Array.from({ length: PROMPT_TOKENS }, (_, i) => (sequence * 7919 + i * 104_729 + 3) % vocabSize);
await Promise.all(
  Array.from({ length: SEQUENCES }, (_, sequence) =>
    engine.complete({ prompt: prompt(sequence), maxTokens: GENERATED_TOKENS, ignoreEos: true }),
  ),
);
const { cacheBytes } = await engine.stats();
await engine.close();
console.log(JSON.stringify({ loadSeconds, peakBytes: peakBytes(), cacheBytes }));

/** The kernel's own mark where it keeps one: `maxRSS` of a child begins with its parent's. */
function peakBytes() {
  if (process.platform === "linux") {
    const mark = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    if (mark !== null) return Number(mark[1]) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}
