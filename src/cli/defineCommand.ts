/** What every command does before its own work: refuse options it does not know, and hand on Ctrl-C as a signal. */

import type { ArgsDef, CommandDef } from "citty";
import { interruptible } from "./exit.ts";
import { type ParsedOptions, refuseUnknownOptions } from "./options.ts";

/** A command: its name and purpose for the help, its options, and the work. */
export interface CommandDefinition {
  readonly name: string;
  readonly description: string;
  readonly options: ArgsDef;
  /** `args._` holds the words that belong to no option; `signal` is aborted by Ctrl-C. */
  run(args: ParsedOptions, signal: AbortSignal): Promise<void>;
}

/** Makes a citty command of `definition`. */
export function defineCommand({ name, description, options, run }: CommandDefinition): CommandDef {
  return {
    meta: { name, description },
    args: options,
    async run({ args }) {
      refuseUnknownOptions(args, options);
      await interruptible((signal) => run(args, signal));
    },
  };
}

/** The positional words of the help text; a command reads them from `args._`, because MODEL may be left out. */
export const modelWord = {
  type: "positional",
  required: false,
  description:
    "a .gguf file, a folder, or a Hugging Face repository (owner/name, owner/name:Q4_K_M); default: the bundled model",
} as const;

/** `--model`, for when the first word could be mistaken. */
export const modelOption = {
  type: "string",
  alias: "m",
  description: "the model, when the first word is not to be taken for one",
  valueHint: "model",
} as const;

/** `--json`. */
export const jsonOption = { type: "boolean", description: "print one JSON object" } as const;
