/** README and docs/ are run: TypeScript blocks against the sources, shell commands as a reader would type them. */

import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { afterAll, describe, expect, it } from "vitest";
import { againstSources, codeBlocks, programs, shellCommands } from "./codeBlocks.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "kvasir-docs-"));
afterAll(() => rmSync(folder, { recursive: true }));

const run = promisify(execFile);
const environment = { ...process.env, PATH: `${join(root, "node_modules/.bin")}:${process.env.PATH}`, NO_COLOR: "1" };

/** Commands that a test cannot repeat, and why. Their npm script has to exist all the same. */
const NOT_RUN: readonly (readonly [RegExp, string])[] = [
  [/^npm (ci|install)\b/, "installs the package anew"],
  [/^npm test\b/, "is this"],
  [/^npm start\b/, "has a test of its own"],
  [/^npm run (bench|goldens|fetch:gemma|build|check)\b/, "takes minutes, a download or files beside the repository"],
  [/^\.ci\/run\b/, "runs all of these"],
  [/^npm run kvasir -- chat\b/, "waits for a person"],
  [/^npm run kvasir -- bench\b/, "takes minutes"],
  [/gemma-3-270m-q4_k_m\.gguf/, "needs a download"],
  [/^npm run kvasir -- \w+ \w+\/\w+/, "needs a download"],
  [/^curl\b|^git clone\b/, "needs the network"],
];

const pages = ["README.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)].filter((path) =>
  path.endsWith(".md"),
);

describe.each(pages)("%s", (page) => {
  const blocks = codeBlocks(readFileSync(join(root, page), "utf8"));

  it("names the language of every code block", () => {
    expect(blocks.filter(({ language }) => language === "").map(({ line }) => line)).toEqual([]);
  });

  for (const { language, line, text } of programs(blocks)) {
    if (language === "ts") {
      it(`runs the code of line ${line}`, { timeout: 60_000 }, async () => {
        const file = join(folder, `${page.replaceAll("/", "-")}-${line}.ts`);
        writeFileSync(file, againstSources(text, pathToFileURL(root).href));
        await run(process.execPath, [file], { cwd: root, env: environment });
      });
    }
    if (language !== "sh") continue;
    for (const command of shellCommands(text).flatMap((chain) => chain.split(" && "))) {
      const reason = NOT_RUN.find(([pattern]) => pattern.test(command))?.[1];
      if (reason !== undefined) {
        it(`knows the script of \`${command}\`, which ${reason}`, () => {
          const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { scripts: object };
          const script = /^npm run (\S+)/.exec(command)?.[1];
          if (script !== undefined) expect(Object.keys(scripts)).toContain(script);
        });
      } else {
        it(`runs \`${command}\``, { timeout: 120_000 }, async () => {
          await run("bash", ["-euc", command], { cwd: root, env: environment });
        });
      }
    }
  }
});

describe("codeBlocks", () => {
  it("finds language, line and text, and refuses an open fence", () => {
    expect(codeBlocks("a\n```ts\nx\ny\n```\n    indented\n```sh\nz\n```\n")).toEqual([
      { language: "ts", line: 2, text: "x\ny" },
      { language: "sh", line: 7, text: "z" },
    ]);
    expect(() => codeBlocks("\n```ts\nx")).toThrow("the code block opened on line 2 is never closed");
  });

  it("puts a page's beginning before every later block of its language", () => {
    const [first, beginning] = ["one();", "// Every block below begins with these lines.\nconst a = 1;"];
    const page = ["ts", first, "ts", beginning, "sh", "npm ci", "ts", "two(a);"];
    const markdown = page.map((text, i) => (i % 2 === 0 ? `\`\`\`${text}` : `${text}\n\`\`\``)).join("\n");
    const texts = programs(codeBlocks(markdown)).map(({ line, text }) => [line, text]);
    expect(texts).toEqual([
      [1, first],
      [8, "npm ci"],
      [11, `${beginning}\ntwo(a);`],
    ]);
  });

  it("points imports at the sources and leaves the rest", () => {
    const text = `import { Engine } from "kvasir";\nimport { x } from "kvasir/attention";\nconst s = "kvasir";`;
    expect(againstSources(text, "file:///k/")).toBe(
      `import { Engine } from "file:///k/src/index.ts";\nimport { x } from "file:///k/src/attention/index.ts";\nconst s = "kvasir";`,
    );
  });

  it("joins continued commands and drops comments", () => {
    expect(shellCommands("# one\nnpm ci   # two\nnpx kvasir run \\\n  --json\n")).toEqual([
      "npm ci",
      "npx kvasir run    --json",
    ]);
  });
});
