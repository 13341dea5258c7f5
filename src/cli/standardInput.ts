/** Text from standard input, for commands whose text was not given as a word. */

import { text } from "node:stream/consumers";
import { UsageError } from "./exit.ts";

/** All of standard input. Throws UsageError when it is a terminal, or empty; `wanted` says what is missing. */
export async function readStandardInput(wanted: string): Promise<string> {
  if (process.stdin.isTTY) throw new UsageError(`${wanted} is missing`);
  const all = await text(process.stdin);
  if (all === "") throw new UsageError(`${wanted} is missing: standard input is empty`);
  return all;
}
