/** Where the tests are: beside the sources, in test/ for the project as a whole, and beside the tools. */

import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: [
      "src/**/*.test.ts",
      "test/**/*.test.ts",
      "tools/**/*.test.ts",
      "goldens/**/*.test.ts",
      "bench/**/*.test.ts",
    ],
    // Tests own worker threads and shared memories; a process of its own for each file keeps their leaks apart.
    pool: "forks",
    // A slow two-core machine runs a model in some of them.
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
});
