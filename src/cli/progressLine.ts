/** One line on standard error that says how far loading is, on a terminal only: logs and pipes stay clean. */

import type { LoadProgress } from "../engine/types.ts";
import { formatBytes } from "./figures.ts";

const WORDS = { download: "Downloading", read: "Reading weights", prepare: "Preparing" } as const;
const INTERVAL_MS = 80;

/** Draws the newest state, at most every 80 ms, over the one before it. */
export class ProgressLine {
  readonly #isShown = process.stderr.isTTY === true;
  #drawnAt = 0;
  #isDrawn = false;

  show({ stage, loadedBytes, totalBytes }: LoadProgress): void {
    const now = performance.now();
    if (!this.#isShown || now - this.#drawnAt < INTERVAL_MS) return;
    this.#drawnAt = now;
    this.#isDrawn = true;
    const share =
      totalBytes > 0 ? ` ${Math.floor((100 * loadedBytes) / totalBytes)} % of ${formatBytes(totalBytes)}` : "";
    process.stderr.write(`\r\u001b[K${WORDS[stage]}${share}`);
  }

  clear(): void {
    if (this.#isDrawn) process.stderr.write("\r\u001b[K");
    this.#isDrawn = false;
  }
}
