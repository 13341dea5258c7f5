/** Entry of the engine's worker thread in Node. */

import { nodeWorkerPort } from "./channel.node.ts";
import { serveEngine } from "./host.ts";
import { loadBackend } from "./loadBackend.node.ts";

serveEngine(nodeWorkerPort(), loadBackend);
