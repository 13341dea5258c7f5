/** Every command by name, each loaded only when it runs, so that the program starts at once. */

import type { CommandDef } from "citty";

export const commands: Readonly<Record<string, () => Promise<CommandDef>>> = {
  demo: async () => (await import("./demo.ts")).demo,
  run: async () => (await import("./run.ts")).run,
  chat: async () => (await import("./chat.ts")).chat,
  eval: async () => (await import("./eval.ts")).evaluate,
  bench: async () => (await import("./bench.ts")).bench,
  inspect: async () => (await import("./inspect.ts")).inspect,
  "inspect-kernel": async () => (await import("./inspectKernel.ts")).inspectKernel,
  doctor: async () => (await import("./doctor.ts")).doctor,
};
