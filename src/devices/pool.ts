/**
 * The workers of a device: starts them, notices when one dies, ends them. What they do meanwhile is in `executor.ts`; after the
 * start they are spoken to through shared memory only.
 */

import { DeviceError } from "../tensor/errors.ts";
import { publishShutdown } from "./controlBlock.ts";
import type { Platform, WorkerHandle } from "./platform.ts";

/** How long a worker may take to end by itself before it is terminated. */
const SHUTDOWN_MS = 500;

interface PoolWorker {
  readonly handle: WorkerHandle;
  readonly exited: Promise<void>;
}

export class WorkerPool {
  readonly #memory: WebAssembly.Memory;
  readonly #workers: PoolWorker[] = [];
  readonly #onDeath: (error: DeviceError) => void;
  #isClosing = false;

  /** `onDeath` is called when a worker ends that was not asked to. */
  constructor(memory: WebAssembly.Memory, onDeath: (error: DeviceError) => void) {
    this.#memory = memory;
    this.#onDeath = onDeath;
  }

  /** Starts threads 1 to `numWorkers` and resolves when all of them serve. Rejects with DeviceError when one fails to. */
  async start(platform: Platform, numWorkers: number, spinMicroseconds: number): Promise<void> {
    const ready: Promise<void>[] = [];
    for (let thread = 1; thread <= numWorkers; thread++) {
      const readiness = Promise.withResolvers<void>();
      const exit = Promise.withResolvers<void>();
      const handle = platform.spawn(
        { memory: this.#memory, thread, spinMicroseconds },
        {
          onReady: () => readiness.resolve(),
          onExit: (reason) => {
            exit.resolve();
            if (this.#isClosing) return;
            const error = new DeviceError(
              `worker ${thread} of the cpu device died: ${reason}. Close the device and make another`,
            );
            readiness.reject(error);
            this.#onDeath(error);
          },
        },
      );
      this.#workers.push({ handle, exited: exit.promise });
      ready.push(readiness.promise);
    }
    const outcomes = await Promise.allSettled(ready);
    const failed = outcomes.find((outcome) => outcome.status === "rejected");
    if (failed !== undefined) throw failed.reason;
    for (const worker of this.#workers) worker.handle.keepAlive(false);
  }

  /** Resolves when every worker has ended. */
  async close(): Promise<void> {
    this.#isClosing = true;
    if (this.#workers.length === 0) return;
    for (const worker of this.#workers) worker.handle.keepAlive(true);
    publishShutdown(new Int32Array(this.#memory.buffer));
    const terminate = setTimeout(() => this.terminate(), SHUTDOWN_MS);
    await Promise.all(this.#workers.map((worker) => worker.exited));
    clearTimeout(terminate);
  }

  /** Ends the workers wherever they are, even inside a kernel. */
  terminate(): void {
    for (const worker of this.#workers) worker.handle.terminate();
  }
}
