/** Entry of a Web Worker: serves runs until the device shuts down. */

import { Executor } from "./executor.ts";
import type { WorkerStart } from "./platform.ts";

self.onmessage = (event: MessageEvent<WorkerStart>) => {
  const { memory, thread, spinMicroseconds } = event.data;
  const executor = new Executor(memory, thread, { spinMicroseconds, canSleep: true });
  self.postMessage("ready");
  executor.serve();
  self.postMessage("ended");
  self.close();
};
