/**
 * Holds the sources to docs/architecture.md: imports go downward only and never in a circle, Node stays in the files named for it,
 * and the core has no npm dependency. Types and style are tsc's and biome's.
 */

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { findCycles, layerFolder, listSources, type ModuleImport, readImports } from "./sourceGraph.ts";

/** The layers from the bottom up; `reference` only re-exports what lies below it. */
const LAYERS = [
  "tensor",
  "kernels",
  "devices",
  "ops",
  "cache",
  "attention",
  "compat",
  "models",
  "convert",
  "engine",
  "reference",
  "",
  "cli",
];

/** The core: nothing of npm at run time. */
const CORE = new Set(["tensor", "kernels", "devices", "ops", "cache", "attention", "compat", "reference"]);

const isTest = (path: string): boolean => path.endsWith(".test.ts");
const needsNode = (path: string): boolean => path.endsWith(".node.ts") || path.startsWith("src/cli/");
const layerName = (folder: string): string => (folder === "" ? "src" : folder);

/** What one import breaks, as a sentence, or undefined. Only `src` has layers; tests may reach anywhere but are never imported. */
function judgeImport(edge: ModuleImport): string | undefined {
  const { from, target, isRelative, kind } = edge;
  if (!from.startsWith("src/") || isTest(from)) return undefined;
  if (!isRelative) {
    if (kind === "type" || needsNode(from))
      return CORE.has(layerFolder(from)) && isNpm(target) ? npmMessage(from, target) : undefined;
    if (target.startsWith("node:")) {
      return `imports ${target}, but only *.node.ts files and src/cli may: a browser has to load this file. Move the code to a *.node.ts file and import that with await import()`;
    }
    return CORE.has(layerFolder(from)) ? npmMessage(from, target) : undefined;
  }
  if (!target.startsWith("src/")) return `imports ${target}, which is not published: only src/ and assets/ are`;
  if (isTest(target)) return `imports the test ${target}; move what both need to a source file`;
  const [importer, imported] = [LAYERS.indexOf(layerFolder(from)), LAYERS.indexOf(layerFolder(target))];
  if (importer === -1)
    return `lies in src/${layerFolder(from)}, which is no layer: the layers are ${LAYERS.filter(Boolean).join(", ")}`;
  if (imported > importer) {
    return `imports ${target}: ${layerName(layerFolder(from))} lies below ${layerName(layerFolder(target))}, and imports go downward only`;
  }
  if (kind === "static" && target.endsWith(".node.ts") && !needsNode(from)) {
    return `loads ${target} in browsers too; write await import() where Node is known to be there, or import only its types`;
  }
  return undefined;
}

function isNpm(target: string): boolean {
  return !target.startsWith("node:");
}

function npmMessage(from: string, target: string): string {
  return `imports ${target}: ${layerName(layerFolder(from))} is part of the core, which has no npm dependency`;
}

/** Every violation under `root`, each `file:line what`. */
export function checkLayers(root: string): string[] {
  const sources = listSources(
    root,
    ["src", "goldens", "bench", "tools", "test"].filter((folder) => existsSync(join(root, folder))),
  );
  const imports = sources.flatMap((path) => readImports(root, path));
  const known = new Set(sources);
  const problems: string[] = [];
  for (const edge of imports) {
    const problem = judgeImport(edge);
    if (problem !== undefined) problems.push(`${edge.from}:${edge.line} ${problem}`);
    if (
      !isTest(edge.from) &&
      edge.isRelative &&
      edge.target.endsWith(".ts") &&
      !known.has(edge.target) &&
      !existsSync(join(root, edge.target))
    ) {
      problems.push(`${edge.from}:${edge.line} names ${edge.target}, which does not exist`);
    }
  }
  for (const cycle of findCycles(imports)) problems.push(`circular import: ${[...cycle, cycle[0]].join(" -> ")}`);
  return problems;
}

if (import.meta.main) {
  const root = join(dirname(fileURLToPath(import.meta.url)), "..");
  const problems = checkLayers(root);
  for (const problem of problems) console.error(problem);
  console.log(problems.length === 0 ? "layers: no violation" : `layers: ${problems.length} violations`);
  process.exitCode = problems.length === 0 ? 0 : 1;
}
