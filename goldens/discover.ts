/** Finds the golden cases under the given paths, and passes over the JSON files that only accompany one (configs, tokenizers). */
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";

export interface FoundCase {
  readonly path: string;
  /** The folder it was found in, for the progress lines. */
  readonly group: string;
  /** It was given as a file, not found in a folder. */
  readonly isNamed: boolean;
  readonly json: unknown;
}

/** Throws if a path does not exist or a file cannot be parsed. A folder without any case gives nothing. */
export function* discover(paths: readonly string[]): Generator<FoundCase> {
  for (const path of paths) {
    if (!existsSync(path)) throw new Error(`${path} does not exist`);
    const isNamed = !statSync(path).isDirectory();
    for (const file of isNamed ? [path] : casesBelow(path)) {
      yield { path: file, group: dirname(file), isNamed, json: JSON.parse(readFileSync(file, "utf8")) };
    }
  }
}

function casesBelow(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  const files = entries.filter((entry) => entry.isFile() && entry.name.endsWith(".json")).map((entry) => entry.name);
  const cases = files.includes("expected.json") ? ["expected.json"] : files.filter((name) => !isCompanion(name));
  return [
    ...cases.map((name) => join(folder, name)),
    ...entries.filter((entry) => entry.isDirectory()).flatMap((entry) => casesBelow(join(folder, entry.name))),
  ];
}

function isCompanion(path: string): boolean {
  const name = basename(path);
  return name.endsWith("config.json") || name.endsWith(".index.json") || name === "tokenizer.json";
}
