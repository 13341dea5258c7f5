/** Worker threads of Node. */

import { availableParallelism } from "node:os";
import { SHARE_ENV, Worker } from "node:worker_threads";
import type { Platform } from "./platform.ts";

/**
 * The options of this process that matter to a worker. The others stay out: some (`--input-type`) make it fail, and a worker imports
 * nothing but this folder.
 */
const execArgv = process.execArgv.filter((option) =>
  ["--experimental-strip-types", "--disable-warning", "--no-warnings"].some((known) => option.startsWith(known)),
);

/** The worker's entry beside this file. Unbuilt, the project is TypeScript; built, JavaScript with the same names. */
const entryUrl = new URL(`./worker.node.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`, import.meta.url);

export const nodePlatform: Platform = {
  get availableThreads() {
    return availableParallelism();
  },

  spawn(start, events) {
    const worker = new Worker(entryUrl, { workerData: start, execArgv, env: SHARE_ENV, name: "kvasir" });
    let reason = "";
    worker.once("message", () => events.onReady());
    worker.once("error", (error) => {
      reason = String(error);
    });
    worker.once("exit", (code) => events.onExit(reason || `it ended with code ${code}`));
    return {
      terminate() {
        void worker.terminate();
      },
      keepAlive(yes) {
        if (yes) worker.ref();
        else worker.unref();
      },
    };
  },

  macrotask: () => new Promise((resolve) => setImmediate(resolve)),
};
