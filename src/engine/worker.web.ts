/** Entry of the engine's Web Worker in browsers. */

import { type WorkerScope, webWorkerPort } from "./channel.web.ts";
import { serveEngine } from "./host.ts";
import { loadBackend } from "./loadBackend.ts";

// TypeScript knows the global scope of a page; this file runs in a worker's.
serveEngine(webWorkerPort(globalThis as unknown as WorkerScope), loadBackend);
