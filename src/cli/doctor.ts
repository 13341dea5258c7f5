/** `kvasir doctor`: what this machine offers, what of it is used, and why not. The measuring of memory is memoryBandwidth.ts's. */

import { execFile } from "node:child_process";
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import { promisify, styleText } from "node:util";
import { detectWasmFeatures } from "../kernels/index.ts";
import { defineCommand, jsonOption } from "./defineCommand.ts";
import { CommandError, UsageError } from "./exit.ts";
import { formatBytes } from "./figures.ts";
import { measureMemoryBandwidth } from "./memoryBandwidth.ts";
import { modelCacheFolder } from "./modelNames.ts";

/** One finding: whether it is there, what exactly, and what its absence means. */
export interface Finding {
  readonly name: string;
  /** "used": there, and Kvasir uses it; "unused": there, but this version does not; "missing"; "measured": a figure. */
  readonly state: "used" | "unused" | "missing" | "measured";
  readonly detail: string;
}

const MARKS = { used: "+", unused: "o", missing: "-", measured: " " } as const;
const COLORS = { used: "green", unused: "yellow", missing: "red", measured: "dim" } as const;

export const doctor = defineCommand({
  name: "doctor",
  description: "what this machine offers, what is used of it, and why not",
  options: { json: jsonOption },
  async run(args, signal) {
    if (args._.length > 0) throw new UsageError(`doctor takes no words, got "${args._[0]}"`);
    const findings = await examine(signal);
    if (args.json === true) {
      console.log(JSON.stringify({ findings }, undefined, 2));
    } else {
      const width = Math.max(...findings.map(({ name }) => name.length));
      for (const { name, state, detail } of findings) {
        console.log(`${styleText(COLORS[state], MARKS[state])} ${name.padEnd(width)}  ${detail}`);
      }
      console.log(styleText("dim", "\n+ used  o there, not used by this version  - missing"));
    }
    if (findings.some(({ name, state }) => name === "SIMD" && state === "missing")) {
      throw new CommandError("the CPU device cannot run here: it needs WebAssembly SIMD");
    }
  },
});

/** Everything that decides how fast, or whether, a model runs here. */
export async function examine(signal: AbortSignal): Promise<Finding[]> {
  const wasm = detectWasmFeatures();
  const found = (name: string, isThere: boolean, detail: string, why: string): Finding => ({
    name,
    state: isThere ? "used" : "missing",
    detail: isThere ? detail : why,
  });
  const findings: Finding[] = [
    { name: "Node", state: "used", detail: `${process.version}, ${process.platform} ${process.arch}` },
    {
      name: "CPU",
      state: "used",
      detail: `${cpus()[0]?.model.trim() ?? "unknown"}, ${availableParallelism()} threads by default`,
    },
    {
      name: "memory",
      state: "measured",
      detail: `${formatBytes(freemem())} free of ${formatBytes(totalmem())}; a model and its cache take at most 4 GiB`,
    },
    found(
      "SIMD",
      wasm !== undefined,
      "WebAssembly SIMD, 128 bits",
      "this engine has no WebAssembly SIMD, which every kernel needs",
    ),
    found(
      "relaxed SIMD",
      wasm?.relaxedSimd === true,
      "fused multiply-add and 8-bit dot products",
      "not in this engine: multiply-adds take two steps, 8-bit products more. Node 22 and later have it",
    ),
    found(
      "shared memory",
      wasm?.sharedMemory === true,
      "kernels run on all threads",
      "no shared WebAssembly memory: one thread only",
    ),
    await findCompiler(signal),
    await findWebGpu(),
  ];
  if (wasm !== undefined) {
    const one = await measureMemoryBandwidth(1);
    signal.throwIfAborted();
    const all = wasm.sharedMemory ? await measureMemoryBandwidth() : one;
    findings.push({
      name: "reading memory",
      state: "measured",
      detail: `${formatBytes(one)}/s with one thread, ${formatBytes(all)}/s with all: a model of 1 GB decodes at most ${(all / 1e9).toFixed(0)} tokens per second`,
    });
  }
  return [...findings, { name: "downloads", state: "measured", detail: `kept in ${modelCacheFolder()}` }];
}

async function findCompiler(signal: AbortSignal): Promise<Finding> {
  const tried = [...(process.env.CC ? [process.env.CC] : []), "cc", "clang", "gcc"];
  for (const compiler of tried) {
    try {
      const { stdout } = await promisify(execFile)(compiler, ["--version"], { signal });
      const version = stdout.split("\n")[0];
      return {
        name: "C compiler",
        state: "unused",
        detail: `${compiler}: ${version}; kernels compiled for this machine are yet to come`,
      };
    } catch {
      signal.throwIfAborted();
      // Not this one; the next may be there.
    }
  }
  return { name: "C compiler", state: "missing", detail: `none of ${tried.join(", ")} runs; nothing needs one yet` };
}

async function findWebGpu(): Promise<Finding> {
  const name = "WebGPU";
  // In Node it comes with the package `webgpu`, which this project does not depend on.
  const gpu = (globalThis.navigator as { gpu?: { requestAdapter(): Promise<unknown> } } | undefined)?.gpu;
  if (gpu === undefined)
    return { name, state: "missing", detail: "this engine has no navigator.gpu; the WebGPU device is yet to come" };
  const adapter = await gpu.requestAdapter();
  if (adapter === null) return { name, state: "missing", detail: "navigator.gpu finds no adapter" };
  return { name, state: "unused", detail: "an adapter is there; the WebGPU device is yet to come" };
}
