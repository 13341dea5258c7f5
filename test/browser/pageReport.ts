/** What the page tells the server about its trials. */

import type { Trial } from "./trial.ts";

/** How long the page's thread is blocked on purpose, to see that the watch would notice. */
export const blockedMs = 200;

/** How the page's thread fared during one trial. */
export interface Liveliness {
  /** Animation frames while the engine was there, and the longest time between two of them. */
  readonly frames: number;
  readonly seconds: number;
  readonly longestGapMs: number;
  /** The longest task of the page's thread that the browser saw, 0 when all were below its 50 ms. */
  readonly longestTaskMs: number;
}

export interface PageReport {
  readonly userAgent: string;
  readonly isIsolated: boolean;
  /** What the watch saw when the page's thread was blocked on purpose, for `blockedMs`. */
  readonly blocked: Liveliness | undefined;
  readonly trials: readonly (Trial & Liveliness)[];
  /** What went wrong; the rest is then what was there by that time. */
  readonly error?: string;
}
