/** Runs the `kvasir` program from its sources as a person or a script would, and collects what it says. */

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

export const root = fileURLToPath(new URL("..", import.meta.url));

/** What a finished program left. */
export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** `input` goes to standard input; `onOutput` sees standard output as it grows and may send a signal. */
export interface RunOptions {
  readonly input?: string;
  readonly onOutput?: (output: string, kill: (signal: NodeJS.Signals) => void) => void;
}

/** Runs `kvasir` with these words, without a terminal. */
export function kvasir(words: readonly string[], { input = "", onOutput }: RunOptions = {}): Promise<Outcome> {
  const child = spawn(process.execPath, ["src/cli/main.ts", ...words], {
    cwd: root,
    env: { ...process.env, NO_COLOR: "1" },
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
    onOutput?.(stdout, (signal) => child.kill(signal));
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  child.stdin.end(input);
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}
