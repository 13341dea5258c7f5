/** Finds a Chromium on this machine and shows it one page, without a window. What the page does is the page's matter. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";

/** Places in the order in which they are tried. */
const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--enable-logging=stderr",
];

/** The path of a browser, or undefined. KVASIR_CHROMIUM, if set, is the only place. */
export function findChromium(): string | undefined {
  const chosen = process.env.KVASIR_CHROMIUM;
  if (chosen !== undefined) return isExecutable(chosen) ? chosen : undefined;
  const onPath = (process.env.PATH ?? "")
    .split(delimiter)
    .flatMap((folder) => [join(folder, "chromium"), join(folder, "google-chrome")]);
  return [...PLACES, ...onPath].find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false; // the question was whether
  }
}

/**
 * Opens `url` and closes the browser as soon as `done` settles. Rejects when the browser ends before, or after `timeoutMs`; the error
 * has the messages of the page's console.
 */
export async function withChromium<Result>(
  executable: string,
  url: string,
  done: Promise<Result>,
  timeoutMs: number,
): Promise<Result> {
  const profile = mkdtempSync(join(tmpdir(), "kvasir-chromium-"));
  const browser = spawn(executable, [...FLAGS, `--user-data-dir=${profile}`, url], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const log: string[] = [];
  browser.stderr.setEncoding("utf8").on("data", (text: string) => log.push(text));
  const failed = (reason: string) => new Error(`${executable} ${reason} before the page reported:\n${consoleOf(log)}`);
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      done,
      new Promise<never>((_, reject) => {
        browser.on("error", reject);
        browser.on("exit", (code, signal) => reject(failed(`ended with ${code ?? signal}`)));
        timer = setTimeout(() => reject(failed(`took more than ${timeoutMs / 1000} seconds`)), timeoutMs);
      }),
    ]);
  } finally {
    clearTimeout(timer);
    await end(browser);
    rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}

async function end(browser: ChildProcess): Promise<void> {
  if (browser.pid === undefined || browser.exitCode !== null || browser.signalCode !== null) return;
  const exited = once(browser, "exit");
  browser.kill();
  await exited;
}

/** The page's own messages; the browser's are about the missing bus and screen. */
function consoleOf(log: readonly string[]): string {
  const lines = log.join("").split("\n");
  const console = lines.filter((line) => line.includes("CONSOLE"));
  return (console.length > 0 ? console : lines.slice(-20)).join("\n");
}
