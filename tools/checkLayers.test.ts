import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { checkLayers } from "./checkLayers.ts";
import { parseImports } from "./sourceGraph.ts";

const roots: string[] = [];

function project(files: Record<string, string>): string {
  const root = mkdtempSync(join(tmpdir(), "kvasir-layers-"));
  roots.push(root);
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

afterEach(() => {
  for (const root of roots.splice(0)) rmSync(root, { recursive: true });
});

describe("parseImports", () => {
  it("tells static, type, dynamic and worker imports apart and ignores comments and strings", () => {
    const text = [
      `import { a } from "./a.ts";`,
      `import type { B } from "../b.ts";`,
      `export * from "./c.ts";`,
      `// import { x } from "./comment.ts";`,
      `const s = 'import "./string.ts"';`,
      `const d = await import("node:fs");`,
      `new Worker(new URL(import.meta.url.endsWith(".ts") ? "./w.ts" : "./w.js", import.meta.url));`,
      `type T = import("./t.ts").T;`,
    ].join("\n");
    expect(parseImports("src/ops/x.ts", text).map(({ target, kind, line }) => [target, kind, line])).toEqual([
      ["src/ops/a.ts", "static", 1],
      ["src/b.ts", "type", 2],
      ["src/ops/c.ts", "static", 3],
      ["node:fs", "dynamic", 6],
      ["src/ops/w.ts", "worker", 7],
      ["src/ops/t.ts", "type", 8],
    ]);
  });
});

describe("checkLayers", () => {
  it("accepts imports that go down", () => {
    const root = project({
      "src/tensor/a.ts": `export const a = 1;`,
      "src/engine/b.ts": `import { a } from "../tensor/a.ts"; export const b = async () => (await import("./c.node.ts")).c + a;`,
      "src/engine/c.node.ts": `import { sep } from "node:path"; export const c = sep;`,
      "src/engine/b.test.ts": `import "node:fs"; import "../cli/main.ts";`,
      "src/cli/main.ts": `import "node:fs"; import "../engine/b.ts"; import "citty";`,
    });
    expect(checkLayers(root)).toEqual([]);
  });

  it("names an import that goes up, also of a type", () => {
    const root = project({
      "src/cache/pool.ts": `\nimport type { E } from "../engine/e.ts";`,
      "src/engine/e.ts": `export type E = 1;`,
    });
    expect(checkLayers(root)).toEqual([
      "src/cache/pool.ts:2 imports src/engine/e.ts: cache lies below engine, and imports go downward only",
    ]);
  });

  it("names a circle", () => {
    const root = project({
      "src/ops/a.ts": `import "./b.ts";`,
      "src/ops/b.ts": `import "./c.ts";`,
      "src/ops/c.ts": `import "./a.ts";`,
    });
    expect(checkLayers(root)).toEqual([
      "circular import: src/ops/a.ts -> src/ops/b.ts -> src/ops/c.ts -> src/ops/a.ts",
    ]);
  });

  it("names Node in a browser file, loaded directly or through a .node.ts file", () => {
    const root = project({
      "src/models/file.ts": `import "node:fs";`,
      "src/models/other.ts": `import "./open.node.ts";`,
      "src/models/open.node.ts": `import "node:fs";`,
    });
    const problems = checkLayers(root);
    expect(problems).toHaveLength(2);
    expect(problems[0]).toContain("src/models/file.ts:1 imports node:fs, but only *.node.ts files and src/cli may");
    expect(problems[1]).toContain("src/models/other.ts:1 loads src/models/open.node.ts in browsers too");
  });

  it("names npm in the core, a missing file, an unknown layer and an import of a test", () => {
    const root = project({
      "src/ops/a.ts": `import "citty";`,
      "src/ops/b.ts": `import "./gone.ts";`,
      "src/ops/c.ts": `import "./c.test.ts";`,
      "src/ops/c.test.ts": ``,
      "src/misc/d.ts": `import "../ops/a.ts";`,
    });
    expect(checkLayers(root).map((problem) => problem.split(" ").slice(0, 3).join(" "))).toEqual([
      "src/misc/d.ts:1 lies in",
      "src/ops/a.ts:1 imports citty:",
      "src/ops/b.ts:1 names src/ops/gone.ts,",
      "src/ops/c.ts:1 imports the",
    ]);
  });
});
