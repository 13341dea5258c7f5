/** How a command ends: exit codes, the errors that choose them, and Ctrl-C. What the errors look like on screen is main.ts's. */

/** Exit codes of `kvasir`. 130 is what a shell reports for Ctrl-C. */
export const EXIT = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

/** The command line itself is wrong: an unknown option, a number that is none, a prompt missing. Exit code 2. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** The work could not be done, for a reason the message tells in full; no stack is shown. Exit code 1. */
export class CommandError extends Error {
  override readonly name = "CommandError";
}

/** Ctrl-C. Exit code 130. */
export class InterruptedError extends Error {
  override readonly name = "InterruptedError";
  constructor() {
    super("interrupted");
  }
}

/**
 * Runs `work` with a signal that the first Ctrl-C aborts, so that workers, files and the terminal are left in order.
 * A second Ctrl-C ends the process at once.
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const onInterrupt = (): void => {
    if (controller.signal.aborted) process.exit(EXIT.interrupted);
    controller.abort(new InterruptedError());
  };
  process.on("SIGINT", onInterrupt);
  process.on("SIGTERM", onInterrupt);
  try {
    return await work(controller.signal);
  } catch (error) {
    // Work that was aborted may fail in its own words; what the user did is the reason all the same.
    throw controller.signal.aborted ? controller.signal.reason : error;
  } finally {
    process.off("SIGINT", onInterrupt);
    process.off("SIGTERM", onInterrupt);
  }
}
