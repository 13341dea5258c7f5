/**
 * npm run bench -- NAME [MODEL | PART...] [--json | --markdown] [--threads 1,2]
 *
 * Runs one benchmark, `all` of them, or `report`, which writes docs/benchmarks.md. Without a name, or with one that does not exist, lists
 * the names with exit code 2. Parts are for benchmarks that have some: all of them by default.
 */

import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { attention } from "./attention.ts";
import { handoff } from "./handoff.ts";
import { machine } from "./machine.ts";
import { matmul } from "./matmul.ts";
import { model } from "./model.ts";
import { profile } from "./profile.ts";
import { renderMarkdown, renderText } from "./render.ts";
import { runReport, runSections } from "./report.ts";
import type { Bench, BenchResult } from "./result.ts";
import { smallOps } from "./smallOps.ts";

const benches: readonly Bench[] = [machine, model, profile, matmul, attention, smallOps, handoff];

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { json: { type: "boolean" }, markdown: { type: "boolean" }, threads: { type: "string" } },
  });
  const [name, ...words] = positionals;
  const threads = readThreads(values.threads);
  const parts = benches.find((bench) => bench.name === name)?.parts;
  const unknown = words.filter((word) => parts?.includes(word) === false);
  if (unknown.length > 0) {
    console.error(`${name} has no part "${unknown[0]}": its parts are ${parts?.join(", ")}`);
    return 2;
  }
  const options = { threads, ...(words.length === 0 ? {} : parts ? { parts: words } : { model: words[0] }) };
  if (name === "report") {
    const names = benches.map((bench) => bench.name);
    const missing = words.filter((word) => !names.includes(word));
    // One word that is no benchmark is a model, for all of them.
    if (missing.length > 0 && words.length > 1) {
      console.error(`there is no benchmark "${missing[0]}"\n\n${listNames()}`);
      return 2;
    }
    if (words.length > missing.length) await runSections(words, { threads });
    else await runReport(names, options);
    return 0;
  }
  const chosen = name === "all" ? benches : benches.filter((bench) => bench.name === name);
  if (chosen.length === 0) {
    console.error(`${name === undefined ? "which benchmark?" : `there is no benchmark "${name}"`}\n\n${listNames()}`);
    return 2;
  }
  const results: BenchResult[] = [];
  for (const bench of chosen) {
    const result = await bench.run(options);
    results.push(result);
    if (values.json === true) continue;
    const heading = chosen.length > 1 ? `## ${bench.name}\n\n` : "";
    console.log(heading + (values.markdown === true ? renderMarkdown(result) : renderText(result)));
    if (chosen.length > 1) console.log();
  }
  if (values.json === true) console.log(JSON.stringify(name === "all" ? results : results[0], undefined, 2));
  return 0;
}

function listNames(): string {
  const lines = [
    ...benches.map(({ name, summary, parts }) => [name, parts ? `${summary} (${parts.join(", ")})` : summary]),
    ["all", "all of these, one after another"],
    ["report", "runs each, or those named, in a process of its own and writes docs/benchmarks.md"],
  ].map(([name, summary]) => `  ${name.padEnd(11)}${summary}`);
  return `npm run bench -- NAME [MODEL | PART...] [--json | --markdown] [--threads 1,2]\n\n${lines.join("\n")}`;
}

/** `1,2` -> [1, 2]. Default: one thread and as many as the machine has. */
function readThreads(text: string | undefined): number[] {
  if (text === undefined) return [...new Set([1, availableParallelism()])];
  const counts = text.split(",").map(Number);
  if (counts.some((count) => !Number.isInteger(count) || count < 1)) {
    throw new Error(`--threads must be whole numbers with commas between, got "${text}"`);
  }
  return counts;
}

process.exitCode = await main();
