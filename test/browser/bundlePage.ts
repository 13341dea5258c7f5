// The page as an application would ship it: the built package put through Vite. How the package itself is built is tsdown's matter.
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const here = fileURLToPath(new URL(".", import.meta.url));

/** Writes page.html and what it needs to `folder`. */
export async function bundlePage(folder: string): Promise<void> {
  await build({
    configFile: false,
    root: here,
    // Vite notes that the parts for Node see no `node:` modules in a browser: they are never loaded there.
    logLevel: "error",
    resolve: { alias: [{ find: /^.*\/src\/index\.ts$/, replacement: join(here, "../../dist/index.js") }] },
    // Our workers load parts of themselves on demand, which only modules can; Vite's default for workers is one plain script.
    worker: { format: "es" },
    build: { outDir: folder, emptyOutDir: true, target: "es2024", rolldownOptions: { input: join(here, "page.html") } },
  });
}
