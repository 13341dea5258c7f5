/** Kernels for tests, in WebAssembly text: they need atomics and traps, which the kernel language does not have. */

import loadWabt from "wabt";
import type { KernelModule } from "../../src/devices/kernelStore.ts";

const wabt = await loadWabt();

export interface TestKernel {
  readonly name: string;
  readonly params: Readonly<Record<string, "pointer" | "i32" | "f32">>;
  readonly scratchBytes?: number;
  /** Instructions for one $task, with the parameters in locals of their names; $scratch is this thread's. */
  readonly task: string;
  readonly shared?: boolean;
}

/** A module that runs `task` for each task of its range. */
export function assemble({ name, params, scratchBytes = 0, task, shared = true }: TestKernel): KernelModule {
  const list = Object.entries(params).map(([param, type]) => ({ name: param, type }));
  const locals = list.map((param) => `(local $${param.name} ${param.type === "f32" ? "f32" : "i32"})`).join(" ");
  const loads = list.map(({ name, type }, index) => {
    const load = type === "f32" ? "f32.load" : "i32.load";
    return `(local.set $${name} (${load} offset=${index * 4} (local.get $params)))`;
  });
  const text = `(module
    (import "env" "memory" (memory 1 65536 ${shared ? "shared" : ""}))
    (func (export "run") (param $params i32) (param $task i32) (param $end i32) (param $scratch i32) ${locals}
      ${loads.join("\n")}
      (block $done (loop $tasks
        (br_if $done (i32.ge_s (local.get $task) (local.get $end)))
        ${task}
        (local.set $task (i32.add (local.get $task) (i32.const 1)))
        (br $tasks)))))`;
  const module = wabt.parseWat(name, text, { threads: true });
  const bytes = new Uint8Array(module.toBinary({}).buffer);
  module.destroy();
  return { name, bytes, params: list, scratchBytes };
}

/** out[task] = from[(task * 7 + 3) mod count] + 1: a launch that needs all of the one before it. */
export const permuteAndAdd = (shared: boolean): KernelModule =>
  assemble({
    name: "permuteAndAdd",
    params: { from: "pointer", out: "pointer", count: "i32" },
    shared,
    task: `(i32.store
      (i32.add (local.get $out) (i32.shl (local.get $task) (i32.const 2)))
      (i32.add (i32.const 1) (i32.load (i32.add (local.get $from) (i32.shl
        (i32.rem_u (i32.add (i32.mul (local.get $task) (i32.const 7)) (i32.const 3)) (local.get $count))
        (i32.const 2))))))`,
  });

/** Counts itself at `counter`, and then does not end before the count is `target`: all these tasks must run at once. */
export const meet: KernelModule = assemble({
  name: "meet",
  params: { counter: "pointer", target: "i32" },
  task: `(drop (i32.atomic.rmw.add (local.get $counter) (i32.const 1)))
    (loop $wait (br_if $wait (i32.lt_s (i32.atomic.load (local.get $counter)) (local.get $target))))`,
});

/** After two threads have met: thread 0 (its scratch is at `first`) goes on, the other one stays for ever or traps. */
const afterMeeting = (name: string, fate: string): KernelModule =>
  assemble({
    name,
    params: { counter: "pointer", first: "pointer" },
    scratchBytes: 64,
    task: `(drop (i32.atomic.rmw.add (local.get $counter) (i32.const 1)))
      (loop $wait (br_if $wait (i32.lt_s (i32.atomic.load (local.get $counter)) (i32.const 2))))
      (if (i32.ne (local.get $scratch) (local.get $first)) (then ${fate}))`,
  });

export const workerStays: KernelModule = afterMeeting("workerStays", "(loop $forever (br $forever))");
export const workerTraps: KernelModule = afterMeeting("workerTraps", "unreachable");

/** Traps at task `bad`. */
export const trapAt: KernelModule = assemble({
  name: "trapAt",
  params: { bad: "i32" },
  task: "(if (i32.eq (local.get $task) (local.get $bad)) (then unreachable))",
});

/** Writes the address of the thread's scratch to out[task], and fills the scratch with the task's number. */
export const useScratch = (scratchBytes: number): KernelModule =>
  assemble({
    name: "useScratch",
    params: { out: "pointer" },
    scratchBytes,
    task: `(memory.fill (local.get $scratch) (local.get $task) (i32.const ${scratchBytes}))
      (i32.store (i32.add (local.get $out) (i32.shl (local.get $task) (i32.const 2))) (local.get $scratch))`,
  });
