/** `kvasir bench`: how fast a model runs here. The measurements are benchRows.ts's; this file sets them up and prints them. */

import { type BenchRow, measureRows } from "./benchRows.ts";
import { defineCommand, jsonOption, modelOption, modelWord } from "./defineCommand.ts";
import { UsageError } from "./exit.ts";
import { formatBytes, formatInteger, formatRate, formatSeconds, formatTable } from "./figures.ts";
import { withEngine } from "./loadEngine.ts";
import { splitModel } from "./modelWords.ts";
import { loadOptions, readLoadOptions, readNumber } from "./options.ts";

export const bench = defineCommand({
  name: "bench",
  description: "prefill, decode, concurrent sequences and a shared prefix: tokens per second on this machine",
  options: {
    MODEL: modelWord,
    model: modelOption,
    json: jsonOption,
    repeat: { type: "string", description: "times that each row is measured (default 5)", valueHint: "n" },
    ...loadOptions,
  },
  async run(args, signal) {
    const { model, rest } = splitModel(args._, args.model as string | undefined);
    if (rest.length > 0) throw new UsageError(`bench takes no prompt, got "${rest[0]}"`);
    const repeat = readNumber(args, "repeat", { least: 1, isInteger: true }) ?? 5;
    // Room for sixteen sequences, and for a long context beside what earlier rows left in the prefix cache.
    const options = { maxNumTokens: 8192, ...readLoadOptions(args) };
    await withEngine(model, options, signal, async ({ engine, path, loadSeconds }) => {
      const { device, threads } = engine.describe();
      const isWatched = args.json !== true;
      if (isWatched) console.log(`${path}\n${device}, loaded in ${formatSeconds(loadSeconds)}\n`);
      const rows: BenchRow[] = [];
      for await (const step of measureRows(engine, repeat, options.maxNumTokens, signal)) {
        if (step.kind === "row") rows.push(step.row);
        else if (step.kind === "skipped") console.error(`left out: ${step.reason}`);
        else if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${step.what}`);
      }
      if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
      const peakMemoryBytes = process.resourceUsage().maxRSS * 1024;
      if (isWatched) {
        console.log(`${benchTable(rows)}\n\npeak memory ${formatBytes(peakMemoryBytes)}`);
        return;
      }
      console.log(JSON.stringify({ model: path, device, threads, loadSeconds, peakMemoryBytes, rows }, undefined, 2));
    });
  },
});

function benchTable(rows: readonly BenchRow[]): string {
  const heading = ["", "prompt", "context", "sequences", "tokens/s", "least", "most", "seconds"];
  const lines = rows.map(({ name, promptTokens, contextTokens, sequences, tokensPerSecond, seconds }) => [
    name,
    formatInteger(promptTokens),
    formatInteger(contextTokens),
    formatInteger(sequences),
    formatRate(tokensPerSecond.median),
    formatRate(tokensPerSecond.min),
    formatRate(tokensPerSecond.max),
    formatSeconds(seconds.median),
  ]);
  return formatTable([heading, ...lines]);
}
