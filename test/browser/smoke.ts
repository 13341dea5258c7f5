/**
 * The package in a real browser: `node test/browser/smoke.ts`. Runs the bundled model in headless Chromium in each way a page can, and
 * holds it to what Node makes of the same prompts. Exit code 0: all equal and alive; 1: not; 2: there is no browser to try.
 */

import { execFileSync } from "node:child_process";
import { globSync, mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Engine } from "../../src/index.ts";
import { bundlePage } from "./bundlePage.ts";
import { findChromium, withChromium } from "./chromium.ts";
import { judge } from "./judge.ts";
import type { Liveliness } from "./pageReport.ts";
import { servePage } from "./pageServer.ts";
import { type Setting, settings } from "./settings.ts";
import { activationChoices, runTrial, type Trial } from "./trial.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const TIMEOUT_MS = 120_000;

/** `npm run build`, unless the build is newer than every source. */
function ensureBuild(): void {
  const newest = (pattern: string) =>
    Math.max(0, ...globSync(pattern, { cwd: root }).map((path) => statSync(join(root, path)).mtimeMs));
  if (newest("dist/index.js") > Math.max(newest("src/**/*.ts"), newest("*.config.ts"), newest("package.json"))) return;
  console.log("dist is older than the sources: npm run build");
  execFileSync("npm", ["run", "build"], { cwd: root, stdio: ["ignore", "ignore", "inherit"] });
}

/** What Node makes of the prompts, for each choice of activations. */
async function runInNode(): Promise<Trial[]> {
  const model = join(root, "assets/tales-5m-q8_0.gguf");
  const trials: Trial[] = [];
  for (const activations of activationChoices) {
    trials.push(await runTrial((options) => Engine.load(model, options), activations));
  }
  return trials;
}

async function visit(chromium: string, { isIsolated, inWorker, missing, isBundled }: Setting, bundle: string) {
  const server = await servePage({
    isIsolated,
    ...(isBundled ? { bundle } : {}),
    ...(missing === undefined ? {} : { missing }),
  });
  try {
    return await withChromium(chromium, `${server.url}?worker=${inWorker}`, server.report, TIMEOUT_MS);
  } finally {
    server.close();
  }
}

/** Rows of the table that is printed in the end. */
function rowsOf(place: string, trials: readonly (Trial & Partial<Liveliness>)[]): Record<string, string | number>[] {
  return trials.map((trial) => ({
    place,
    activations: trial.activations,
    threads: trial.threads,
    "tokens/s": Math.round(trial.tokensPerSecond),
    "load s": round(trial.loadSeconds, 2),
    "close ms": round(trial.closeSeconds * 1000, 1),
    ...(trial.frames && trial.seconds ? { "frames/s": round(trial.frames / trial.seconds, 1) } : {}),
    ...(trial.longestGapMs === undefined ? {} : { "longest gap ms": Math.round(trial.longestGapMs) }),
    ...(trial.longestTaskMs === undefined ? {} : { "longest task ms": trial.longestTaskMs }),
  }));
}

const round = (value: number, digits: number): number => Number(value.toFixed(digits));

async function main(): Promise<number> {
  const chromium = findChromium();
  if (chromium === undefined) {
    console.error("there is no Chromium here: install one, or name it in KVASIR_CHROMIUM");
    return 2;
  }
  ensureBuild();
  const bundle = mkdtempSync(join(tmpdir(), "kvasir-page-"));
  try {
    await bundlePage(bundle, "dist");
    const expected = await runInNode();
    const rows = rowsOf(`Node ${process.version}`, expected);
    const problems: string[] = [];
    for (const setting of settings) {
      const report = await visit(chromium, setting, bundle);
      if (setting === settings[0]) console.log(report.userAgent);
      rows.push(...rowsOf(setting.name, report.trials));
      const found = judge(setting, report, expected);
      console.log(`${found.length === 0 ? "ok    " : "FAILED"} ${setting.name}`);
      problems.push(...found);
    }
    console.table(rows);
    for (const problem of problems) console.error(problem);
    return problems.length === 0 ? 0 : 1;
  } finally {
    rmSync(bundle, { recursive: true });
  }
}

process.exitCode = await main();
