/** Entry of a worker thread in Node: serves runs until the device shuts down. */

import { parentPort, workerData } from "node:worker_threads";
import { Executor } from "./executor.ts";
import type { WorkerStart } from "./platform.ts";

const start = workerData as WorkerStart; // what platform.node.ts sent
const executor = new Executor(start.memory, start.thread, { spinMicroseconds: start.spinMicroseconds, canSleep: true });
parentPort?.postMessage("ready");
executor.serve();
