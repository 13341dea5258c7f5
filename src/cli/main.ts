#!/usr/bin/env node
/** The `kvasir` program: finds the command, shows help, and turns what a command throws into a message and an exit code. */

import { readFileSync } from "node:fs";
import { renderUsage, runCommand } from "citty";
import { KvasirError } from "../tensor/errors.ts";
import { commands } from "./commands.ts";
import { CommandError, EXIT, InterruptedError, UsageError } from "./exit.ts";
import { PROGRAM } from "./invocation.ts";

const program = {
  meta: { name: "kvasir", description: "Runs several requests against one language model, from TypeScript alone" },
  subCommands: commands,
};

/** Runs the command line `words` and gives the exit code. Messages go to standard error, results to standard output. */
export async function main(words: readonly string[]): Promise<number> {
  const [name, ...rest] = words;
  try {
    if (name === "--version" || name === "-v") {
      console.log(packageVersion());
      return EXIT.ok;
    }
    const load = name !== undefined && Object.hasOwn(commands, name) ? commands[name] : undefined;
    const wantsHelp = beforeDoubleDash(words).some((word) => word === "--help" || word === "-h");
    if (load === undefined) {
      if (!wantsHelp && name !== undefined) throw new UsageError(`unknown command "${name}"`);
      console[wantsHelp ? "log" : "error"](await renderUsage(program));
      return wantsHelp ? EXIT.ok : EXIT.usage;
    }
    const command = await load();
    if (wantsHelp) console.log(await renderUsage(command, program));
    else await runCommand(command, { rawArgs: rest });
    return EXIT.ok;
  } catch (error) {
    return report(error, name);
  }
}

function beforeDoubleDash(words: readonly string[]): readonly string[] {
  const end = words.indexOf("--");
  return end === -1 ? words : words.slice(0, end);
}

/** Says what went wrong: one message for what a person can put right, the stack too for what they cannot. */
function report(error: unknown, command: string | undefined): number {
  if (error instanceof InterruptedError) {
    console.error("interrupted");
    return EXIT.interrupted;
  }
  // citty's own errors are about the command line too.
  const isUsage = error instanceof UsageError || (error instanceof Error && error.name === "CLIError");
  if (isUsage) {
    const help = command !== undefined && Object.hasOwn(commands, command) ? `${command} --help` : "--help";
    console.error(`kvasir: ${error.message}\nSee: ${PROGRAM} ${help}`);
    return EXIT.usage;
  }
  if (error instanceof CommandError || error instanceof KvasirError) console.error(`kvasir: ${error.message}`);
  else console.error(error);
  return EXIT.failed;
}

function packageVersion(): string {
  const manifest = readFileSync(new URL("../../package.json", import.meta.url), "utf8");
  return (JSON.parse(manifest) as { version: string }).version;
}

// A reader that closes the pipe early, as `head` does, has what it wanted.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.ok);
  throw error;
});

process.exitCode = await main(process.argv.slice(2));
