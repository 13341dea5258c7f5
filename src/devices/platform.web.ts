/** Web Workers. A browser does not tell when a worker ends, only when it fails: terminating one counts as its end here. */

import type { Platform } from "./platform.ts";

export const webPlatform: Platform = {
  get availableThreads() {
    return navigator.hardwareConcurrency;
  },

  spawn(start, events) {
    // In these very words, with the name it has in the build: that is how bundlers recognise a worker and pack it, too.
    const worker = new Worker(new URL("./worker.web.js", import.meta.url), { type: "module", name: "kvasir" });
    let hasExited = false;
    const exit = (reason: string) => {
      if (!hasExited) events.onExit(reason);
      hasExited = true;
    };
    worker.onmessage = (event) => (event.data === "ready" ? events.onReady() : exit("it was shut down"));
    worker.onerror = (event) => exit(event.message ?? "its script could not be loaded");
    worker.postMessage(start);
    return {
      terminate() {
        worker.terminate();
        exit("it was terminated");
      },
      keepAlive() {}, // workers never keep a page alive
    };
  },

  macrotask: () =>
    new Promise((resolve) => {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        resolve();
      };
      port2.postMessage(0);
    }),
};
