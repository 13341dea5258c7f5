/** Channels over Node's worker threads: the caller's end starts the worker, the worker's end is its parent port. */

import { parentPort, Worker } from "node:worker_threads";
import { DeviceError } from "../tensor/errors.ts";
import type { Channel, ChannelListener } from "./channel.ts";

/** The engine's worker, beside this file. Unbuilt, the project is TypeScript; built, JavaScript with the same names. */
export const engineWorkerUrl = new URL(
  `./worker.node.${import.meta.url.endsWith(".ts") ? "ts" : "js"}`,
  import.meta.url,
);

/** Starts the worker at `url`. */
export function startNodeWorker<Incoming, Outgoing>(url: URL): Channel<Incoming, Outgoing> {
  // A program given by `node --input-type=module -e` hands that option on to its workers, which refuse it.
  const isScript = process.execArgv.some((argument) => argument.startsWith("--input-type"));
  const worker = new Worker(url, { name: "kvasir engine", ...(isScript ? { execArgv: [] } : {}) });
  let isClosed = false;
  let failure: unknown;
  const end = (listener: ChannelListener<Incoming>, error: Error) => {
    if (isClosed) return;
    isClosed = true;
    listener.ended(error);
  };
  return {
    post: (message) => worker.postMessage(message),
    listen(listener) {
      worker.on("message", (message: Incoming) => listener.message(message));
      worker.on("messageerror", (cause) => {
        end(listener, new DeviceError("a message of the engine's worker could not be read", { cause }));
      });
      worker.on("error", (cause) => {
        failure = cause;
      });
      // The exit follows every error; waiting for it means that the thread is gone when the error is reported.
      worker.on("exit", (code) => {
        const reason = failure === undefined ? `it exited with code ${code}` : String(failure);
        end(listener, new DeviceError(`the engine's worker has died: ${reason}`, { cause: failure }));
      });
    },
    keepAlive: (isNeeded) => (isNeeded ? worker.ref() : worker.unref()),
    async close() {
      isClosed = true;
      await worker.terminate();
    },
  };
}

/** The end inside the worker. */
export function nodeWorkerPort<Incoming, Outgoing>(): Channel<Incoming, Outgoing> {
  const port = parentPort;
  if (port === null)
    throw new DeviceError("this file is the engine's worker: start it with Engine.load, not by itself");
  return {
    post: (message) => port.postMessage(message),
    listen(listener) {
      port.on("message", (message: Incoming) => listener.message(message));
      port.on("close", () => listener.ended(new DeviceError("the engine's owner is gone")));
    },
    keepAlive: (isNeeded) => (isNeeded ? port.ref() : port.unref()),
    async close() {
      port.close();
    },
  };
}
