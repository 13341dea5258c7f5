/** Reads the import graph of the sources: which module names which, how, and on what line. It judges nothing; checkLayers.ts does. */

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, relative, sep } from "node:path";
import ts from "typescript";

/**
 * How a module names another: `static` loads it with the importer, `dynamic` when the code gets there, `type` is erased,
 * `worker` is a `new URL("./x.ts", ...)` that names a module to start elsewhere.
 */
export type ImportKind = "static" | "dynamic" | "type" | "worker";

/** One import: `target` is a path from the root for relative imports, otherwise the specifier as written. */
export interface ModuleImport {
  readonly from: string;
  readonly target: string;
  readonly isRelative: boolean;
  readonly kind: ImportKind;
  readonly line: number;
}

/** Every TypeScript file under `folders` of `root`, as paths from `root` with forward slashes, sorted. */
export function listSources(root: string, folders: readonly string[]): string[] {
  const paths: string[] = [];
  for (const folder of folders) {
    for (const entry of readdirSync(join(root, folder), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || !entry.name.endsWith(".ts") || entry.name.endsWith(".d.ts")) continue;
      const path = relative(root, join(entry.parentPath, entry.name)).split(sep).join("/");
      if (!path.includes("node_modules/")) paths.push(path);
    }
  }
  return paths.sort();
}

/** The imports of one file of `root`. */
export function readImports(root: string, path: string): ModuleImport[] {
  return parseImports(path, readFileSync(join(root, path), "utf8"));
}

/** The imports written in `text`, the content of the file at `path`. */
export function parseImports(path: string, text: string): ModuleImport[] {
  const file = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const imports: ModuleImport[] = [];
  const add = (node: ts.Expression | undefined, kind: ImportKind): void => {
    if (node === undefined || !ts.isStringLiteralLike(node)) return;
    const isRelative = node.text.startsWith(".");
    const target = isRelative ? posix.normalize(posix.join(posix.dirname(path), node.text)) : node.text;
    imports.push({ from: path, target, isRelative, kind, line: file.getLineAndCharacterOfPosition(node.pos).line + 1 });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node)) add(node.moduleSpecifier, isTypeOnly(node) ? "type" : "static");
    else if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly ? "type" : "static");
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) {
      if (ts.isStringLiteral(node.argument.literal)) add(node.argument.literal, "type");
    } else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) {
      add(node.arguments[0], "dynamic");
    } else if (ts.isNewExpression(node) && ts.isIdentifier(node.expression) && node.expression.text === "URL") {
      for (const literal of stringLiterals(node.arguments?.[0]))
        if (literal.text.endsWith(".ts")) add(literal, "worker");
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return imports;
}

function isTypeOnly(node: ts.ImportDeclaration): boolean {
  const clause = node.importClause;
  return clause?.phaseModifier === ts.SyntaxKind.TypeKeyword;
}

function stringLiterals(node: ts.Node | undefined): ts.StringLiteral[] {
  if (node === undefined) return [];
  if (ts.isStringLiteral(node)) return [node];
  if (ts.isConditionalExpression(node)) return [...stringLiterals(node.whenTrue), ...stringLiterals(node.whenFalse)];
  return [];
}

/** The circles among value imports (static and dynamic alike), each as the list of its files, starting at the smallest name. */
export function findCycles(imports: readonly ModuleImport[]): string[][] {
  const edges = new Map<string, string[]>();
  for (const { from, target, isRelative, kind } of imports) {
    if (!isRelative || kind === "type" || kind === "worker") continue;
    edges.set(from, [...(edges.get(from) ?? []), target]);
  }
  const cycles: string[][] = [];
  const state = new Map<string, "open" | "done">();
  const stack: string[] = [];
  const walk = (path: string): void => {
    state.set(path, "open");
    stack.push(path);
    for (const next of edges.get(path) ?? []) {
      const seen = state.get(next);
      if (seen === undefined) walk(next);
      else if (seen === "open") cycles.push(stack.slice(stack.indexOf(next)));
    }
    stack.pop();
    state.set(path, "done");
  };
  for (const path of [...edges.keys()].sort()) if (!state.has(path)) walk(path);
  return cycles;
}

/** The folder of a source below `src`: `src/ops/rope/cpu.ts` is in `ops`; a file of `src` itself is in `""`. */
export function layerFolder(path: string): string {
  const [, folder] = dirname(path).split("/");
  return folder ?? "";
}
