/**
 * `npm run goldens:copy -- FOLDER`: copies the cases of test/goldens/selection.txt from a whole collection of goldens to
 * test/goldens/cases, so that `npm test` has them on any machine. What was there before is replaced.
 */

import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The copies are part of the repository, and every clone pays for them. */
const MAX_BYTES = 12e6;

/** The cases of a selection: a path without extension on each line; empty lines and those that begin with # say nothing. */
export function readSelection(text: string): string[] {
  const cases = text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "" && !line.startsWith("#"));
  const twice = cases.find((name, i) => cases.indexOf(name) !== i);
  if (twice !== undefined) throw new Error(`${twice} is selected twice`);
  return cases;
}

/** The files of a case, as paths in the collection: its JSON, and what holds its expected outputs. */
function filesOfCase(collection: string, name: string): string[] {
  const path = join(collection, `${name}.json`);
  if (!existsSync(path)) throw new Error(`${path} does not exist: is ${name} a case of this collection?`);
  const { outputs }: { outputs: Record<string, { file: string }> } = JSON.parse(readFileSync(path, "utf8"));
  const stored = new Set(Object.values(outputs).map(({ file }) => join(dirname(name), file)));
  return [`${name}.json`, ...stored];
}

/** Replaces the folder `to` by the selected cases of `collection`, and says how many bytes they are. Nothing is removed if a case is missing. */
export function copyGoldens(collection: string, selection: readonly string[], to: string): number {
  const files = selection.flatMap((name) => filesOfCase(collection, name));
  const numBytes = files.reduce((sum, file) => sum + statSync(join(collection, file)).size, 0);
  if (numBytes > MAX_BYTES)
    throw new Error(`the cases have ${numBytes} bytes; ${MAX_BYTES} is what a repository should carry`);
  rmSync(to, { recursive: true, force: true });
  for (const file of files) {
    mkdirSync(dirname(join(to, file)), { recursive: true });
    copyFileSync(join(collection, file), join(to, file));
  }
  return numBytes;
}

if (import.meta.main) {
  const [collection] = process.argv.slice(2);
  if (collection === undefined) {
    console.error("usage: npm run goldens:copy -- FOLDER");
    process.exitCode = 1;
  } else {
    const goldens = join(dirname(fileURLToPath(import.meta.url)), "..", "test", "goldens");
    const selection = readSelection(readFileSync(join(goldens, "selection.txt"), "utf8"));
    const numBytes = copyGoldens(collection, selection, join(goldens, "cases"));
    console.log(`${selection.length} cases, ${(numBytes / 1e6).toFixed(1)} MB`);
  }
}
