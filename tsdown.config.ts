/**
 * The published package: every source module becomes one module of dist/ at the same place, with its declarations.
 * Unbundled, so that workers (`new URL("./x.js", import.meta.url)`) and assets are found where the sources say.
 */

import { defineConfig } from "tsdown";

export default defineConfig({
  // What package.json names, and the modules that run as workers; everything else is there because one of these needs it.
  entry: [
    "src/index.ts",
    "src/{attention,cache,compat,convert,engine,models,reference}/index.ts",
    "src/cli/main.ts",
    "src/**/worker.{node,web}.ts",
  ],
  root: "src",
  unbundle: true,
  format: "esm",
  // Neutral: no Node shims; `node:` imports stay in the files that are named for it.
  platform: "neutral",
  deps: { neverBundle: [/^node:/] },
  target: "es2024",
  dts: true,
  outExtensions: () => ({ js: ".js", dts: ".d.ts" }),
  clean: true,
  report: false,
});
