/** Where an engine runs: decides between a worker of Node, a Web Worker and this thread, and opens the channel to it. */

import { type Channel, channelPair } from "./channel.ts";
import { webWorkerChannel } from "./channel.web.ts";
import type { FromWorker, ToWorker } from "./messages.ts";

/** The runtime has Node's worker threads; true in Electron's main process and in Node-like runtimes too. */
const isNode = typeof process === "object" && typeof process.versions?.node === "string";

/** `inWorker` false runs the engine in the caller's own thread, whose event loop then waits for every step. */
export async function openChannel(inWorker: boolean): Promise<Channel<FromWorker, ToWorker>> {
  if (!inWorker) {
    const [handleEnd, hostEnd] = channelPair<FromWorker, ToWorker>();
    const { serveEngine } = await import("./host.ts");
    serveEngine(hostEnd, await backendLoader());
    return handleEnd;
  }
  if (isNode) {
    const { engineWorkerUrl, startNodeWorker } = await import("./channel.node.ts");
    return startNodeWorker(engineWorkerUrl);
  }
  // In these very words, with the name it has in the build: that is how bundlers recognise a worker and pack it, too.
  return webWorkerChannel(new Worker(new URL("./worker.web.js", import.meta.url), { type: "module" }));
}

async function backendLoader() {
  if (!isNode) return (await import("./loadBackend.ts")).loadBackend;
  return (await import("./loadBackend.node.ts")).loadBackend;
}
