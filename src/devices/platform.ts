/** What the worker pool needs from where it runs. `platform.node.ts` and `platform.web.ts` provide it. */

/** The runtime around a device: Node or a browser. */
export interface Platform {
  /** Cores this process may use. */
  readonly availableThreads: number;
  /** Starts a worker that serves `start`. It must report its end, however it comes. */
  spawn(start: WorkerStart, events: WorkerEvents): WorkerHandle;
  /** Resolves after the event loop has delivered what was waiting. */
  macrotask(): Promise<void>;
}

/** What a worker is given. */
export interface WorkerStart {
  readonly memory: WebAssembly.Memory;
  /** 1 for the first worker; 0 is the thread that owns the device. */
  readonly thread: number;
  readonly spinMicroseconds: number;
}

/** What the pool hears of a worker. */
export interface WorkerEvents {
  onReady(): void;
  /** The worker is gone; `reason` says why if it is known. Called once at most. */
  onExit(reason: string): void;
}

/** A worker, as its pool holds it. */
export interface WorkerHandle {
  /** Ends the worker wherever it is. `onExit` follows. */
  terminate(): void;
  /** Whether this worker alone keeps the process alive. */
  keepAlive(yes: boolean): void;
}

/** False in a browser's main thread, where Atomics.wait throws. */
export function canSleepHere(): boolean {
  try {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 0);
    return true;
  } catch {
    return false;
  }
}
