/** Runs freshProcess.mjs several times, with the sources and with the built package. */

import { execFile } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

/** What freshProcess.mjs prints. */
export interface FreshProcess {
  readonly loadSeconds: number;
  /** The most memory that the process held. */
  readonly peakBytes: number;
  readonly cacheBytes: number;
}

const fromRoot = (path: string): URL => new URL(`../${path}`, import.meta.url);
const SCRIPT = fileURLToPath(new URL("freshProcess.mjs", import.meta.url));

export const sourcesEngine = fromRoot("src/engine/index.ts");

/** The engine in dist/, or undefined where there is none or a source file is newer. */
export function builtEngine(): URL | undefined {
  const built = fromRoot("dist/engine/index.js");
  if (!existsSync(built)) return undefined;
  const sources = readdirSync(fromRoot("src"), { recursive: true, encoding: "utf8" }).filter(
    (name) => name.endsWith(".ts") && !name.endsWith(".test.ts"),
  );
  const newest = Math.max(...sources.map((name) => statSync(fromRoot(`src/${name}`)).mtimeMs));
  return statSync(built).mtimeMs >= newest ? built : undefined;
}

/** `rounds` processes, one after another, behind one that brings the file into the system's page cache. */
export async function freshProcesses(
  engine: URL,
  modelPath: string,
  threads: number,
  rounds: number,
): Promise<FreshProcess[]> {
  const results: FreshProcess[] = [];
  for (let round = -1; round < rounds; round++) {
    const { stdout } = await promisify(execFile)(process.execPath, [SCRIPT, engine.href, modelPath, `${threads}`]);
    if (round >= 0) results.push(JSON.parse(stdout) as FreshProcess); // what the script printed
  }
  return results;
}
