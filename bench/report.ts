/**
 * docs/benchmarks.md, written anew from end to end or a few sections of it: each benchmark runs in a process of its own and prints JSON, this
 * prints the page.
 */

import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { loadavg } from "node:os";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describeMachine, renderMarkdown } from "./render.ts";
import type { BenchOptions, BenchResult } from "./result.ts";

const PAGE = fileURLToPath(new URL("../docs/benchmarks.md", import.meta.url));
const MAIN = fileURLToPath(new URL("main.ts", import.meta.url));
const MAX_OUTPUT_BYTES = 64 * 2 ** 20;

const introduction = `# Benchmarks

What Kvasir reaches on one machine, beside what was set as its target and what the machine allows, measured in the same run. Figures
move with the machine, so the limits are printed with them: ratios are what counts. This page is written by

\`\`\`sh
npm run build
npm run bench -- report
\`\`\`

and no figure in it is typed by hand. \`npm run bench\` alone lists the names; \`--json\` prints raw figures, \`--markdown\` a table as here.
Gemma 3 270M (\`npm run fetch:gemma\`) is measured where it was fetched, the bundled model otherwise.`;

/** Runs the benchmarks named and writes the page. Rejects, and leaves the page, when one fails. */
export async function runReport(names: readonly string[], options: BenchOptions): Promise<void> {
  const sections: string[] = [];
  const began = performance.now();
  const [load] = loadavg();
  for (const name of names) {
    const start = performance.now();
    const result = await runAlone(name, options);
    console.error(`${name}: ${((performance.now() - start) / 1000).toFixed(0)} s`);
    sections.push(sectionOf(name, result));
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(0);
  const date = new Date().toISOString().slice(0, 10);
  const machine = `Machine: ${describeMachine()}.\nMeasured on ${date} in ${seconds} s; the load average of the minute before was ${load.toFixed(1)}.`;
  await writeFile(PAGE, `${[introduction, machine, ...sections].join("\n\n")}\n`);
  console.error(`wrote ${PAGE}`);
}

/** Runs the benchmarks named and writes their sections of the page anew, each with its date. Rejects, and leaves the page, when one fails. */
export async function runSections(names: readonly string[], options: BenchOptions): Promise<void> {
  let page = await readFile(PAGE, "utf8");
  for (const name of names) {
    const [load] = loadavg();
    const result = await runAlone(name, options);
    const date = new Date().toISOString().slice(0, 10);
    const measured = `This section was measured on ${date}, after the others, with a load average of ${load.toFixed(1)} in the minute before, on ${describeMachine()}.`;
    page = replaceSection(page, name, sectionOf(name, { ...result, about: `${measured}\n\n${result.about}` }));
  }
  await writeFile(PAGE, page);
  console.error(`wrote ${PAGE}`);
}

/** The page with another section of that name; throws Error if it has none. */
export function replaceSection(page: string, name: string, section: string): string {
  const begin = page.indexOf(`\n${headingOf(name)}\n`) + 1;
  if (begin === 0) throw new Error(`the page has no section "${headingOf(name)}": write it from end to end first`);
  const next = page.indexOf("\n## ", begin);
  return `${page.slice(0, begin)}${section}\n${next < 0 ? "" : page.slice(next)}`;
}

async function runAlone(name: string, { threads, model }: BenchOptions): Promise<BenchResult> {
  const args = [MAIN, name, ...(model === undefined ? [] : [model]), "--json", "--threads", threads.join(",")];
  const { stdout } = await promisify(execFile)(process.execPath, args, { maxBuffer: MAX_OUTPUT_BYTES });
  return JSON.parse(stdout) as BenchResult; // main.ts printed it
}

function sectionOf(name: string, result: BenchResult): string {
  return `${headingOf(name)}\n\n\`\`\`sh\nnpm run bench -- ${name}\n\`\`\`\n\n${renderMarkdown(result)}`;
}

const headingOf = (name: string): string => `## ${name[0].toUpperCase()}${name.slice(1)}`;
