/** Channels over Web Workers, for browsers. Not for Node, whose workers are in channel.node.ts. */

import { DeviceError } from "../tensor/errors.ts";
import type { Channel } from "./channel.ts";

/** Wraps a worker that was just started. A page cannot see a worker's end, only its uncaught errors. */
export function webWorkerChannel<Incoming, Outgoing>(worker: Worker): Channel<Incoming, Outgoing> {
  return {
    post: (message) => worker.postMessage(message),
    listen(listener) {
      worker.onmessage = (event: MessageEvent<Incoming>) => listener.message(event.data);
      worker.onmessageerror = () =>
        listener.ended(new DeviceError("a message of the engine's worker could not be read"));
      worker.onerror = (event) => {
        listener.ended(
          new DeviceError(`the engine's worker has died: ${event.message ?? "its script could not be loaded"}`),
        );
        worker.terminate();
      };
    },
    keepAlive() {},
    async close() {
      worker.terminate();
    },
  };
}

/** The part of a worker's global scope that the channel needs; TypeScript's types for pages do not have it. */
export interface WorkerScope {
  postMessage(message: unknown): void;
  onmessage: ((event: MessageEvent) => void) | null;
  close(): void;
}

/** The end inside the worker. */
export function webWorkerPort<Incoming, Outgoing>(scope: WorkerScope): Channel<Incoming, Outgoing> {
  return {
    post: (message) => scope.postMessage(message),
    listen(listener) {
      scope.onmessage = (event: MessageEvent<Incoming>) => listener.message(event.data);
    },
    keepAlive() {},
    async close() {
      scope.close();
    },
  };
}
