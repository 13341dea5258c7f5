/** The ways to run the engine in a page that smoke.ts tries. */

export interface Setting {
  readonly name: string;
  /** Served with the headers that make a page cross-origin isolated: memory shared between threads. */
  readonly isIsolated: boolean;
  /** False: the engine runs in the page's own thread, where Atomics.wait is forbidden. */
  readonly inWorker: boolean;
  /** The modules of dist packed by a bundler. */
  readonly isBundled: boolean;
  /** A file that the server does not have, and the error that Engine.load must then reject with. */
  readonly missing?: string;
  readonly error?: RegExp;
}

const usual = { isIsolated: true, inWorker: true, isBundled: false };

export const settings: readonly Setting[] = [
  { ...usual, name: "isolated, modules" },
  { ...usual, name: "isolated, bundle", isBundled: true },
  { ...usual, name: "not isolated, modules", isIsolated: false },
  { ...usual, name: "not isolated, bundle", isIsolated: false, isBundled: true },
  { ...usual, name: "isolated, page's own thread", inWorker: false },
  {
    ...usual,
    name: "without the engine's worker",
    missing: "/dist/engine/worker.web.js",
    error: /the engine's worker has died: its script could not be loaded/,
  },
  {
    ...usual,
    name: "without the device's worker",
    missing: "/dist/devices/worker.web.js",
    error: /worker 1 of the cpu device died: its script could not be loaded/,
  },
];
