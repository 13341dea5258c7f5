/** The page as an application would ship it: the built package put through Vite. How the package itself is built is tsdown's matter. */

import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const here = fileURLToPath(new URL(".", import.meta.url));

const distIndex = join(here, "../../dist/index.js");

/** Writes page.html and what it needs to `folder`, with the package as it is built in `dist` or unbuilt in `src`. */
export async function bundlePage(folder: string, from: "dist" | "src"): Promise<void> {
  await build({
    configFile: false,
    root: here,
    // Vite notes that the parts for Node see no `node:` modules in a browser: they are never loaded there.
    logLevel: "error",
    resolve: { alias: from === "dist" ? [{ find: /^.*\/src\/index\.ts$/, replacement: distIndex }] : [] },
    build: { outDir: folder, emptyOutDir: true, target: "es2024", rolldownOptions: { input: join(here, "page.html") } },
  });
}
