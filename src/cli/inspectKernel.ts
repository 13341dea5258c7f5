/** `kvasir inspect-kernel`: shows a kernel of any spec as its tree, as WebAssembly text, or as the module's bytes. */

import { createRequire } from "node:module";
import { detectWasmFeatures, type KernelTree, printKernel, wasmModule } from "../kernels/index.ts";
import { defineCommand, jsonOption } from "./defineCommand.ts";
import { CommandError, UsageError } from "./exit.ts";
import { formatInteger } from "./figures.ts";
import { type CatalogEntry, kernelCatalog } from "./kernelCatalog.ts";
import type { ParsedOptions } from "./options.ts";

export const inspectKernel = defineCommand({
  name: "inspect-kernel",
  description: "a kernel's tree, WebAssembly text or bytes; without NAME the list of kernels",
  options: {
    kernel: { type: "positional", required: false, description: "the kernel's name" },
    spec: {
      type: "string",
      description: "fields of the spec to change, as JSON: '{\"headDim\":64}'",
      valueHint: "json",
    },
    format: { type: "enum", options: ["tree", "wat", "wasm"], description: "what to print", default: "tree" },
    "relaxed-simd": { type: "boolean", default: true, description: "with relaxed SIMD, where this engine has it" },
    json: jsonOption,
  },
  async run(args) {
    const [name, ...rest] = args._;
    if (rest.length > 0) throw new UsageError(`expected one kernel name, got also "${rest[0]}"`);
    if (name === undefined) {
      list(args.json === true);
      return;
    }
    const entry = kernelCatalog.find((candidate) => candidate.name === name);
    if (entry === undefined) {
      throw new UsageError(
        `no kernel "${name}": there are ${kernelCatalog.map((candidate) => candidate.name).join(", ")}`,
      );
    }
    await show(entry, args);
  },
});

function list(isJson: boolean): void {
  if (isJson) {
    console.log(
      JSON.stringify(
        kernelCatalog.map(({ name, example }) => ({ name, spec: example })),
        undefined,
        2,
      ),
    );
    return;
  }
  const width = Math.max(...kernelCatalog.map(({ name }) => name.length));
  console.log(`${"kernel".padEnd(width)}   bytes  spec`);
  for (const { name, example, tree } of kernelCatalog) {
    const numBytes = formatInteger(moduleBytes(tree({}), true).length);
    console.log(`${name.padEnd(width)}  ${numBytes.padStart(6)}  ${JSON.stringify(example)}`);
  }
}

async function show(entry: CatalogEntry, args: ParsedOptions): Promise<void> {
  const tree = buildTree(entry, readSpec(args.spec, entry.example));
  const bytes = moduleBytes(tree, args["relaxed-simd"] !== false);
  if (args.json === true) {
    console.log(
      JSON.stringify(
        { name: entry.name, params: tree.params, scratchBytes: tree.scratchBytes, moduleBytes: bytes.length, tree },
        undefined,
        2,
      ),
    );
  } else if (args.format === "wasm") {
    if (process.stdout.isTTY) throw new UsageError("--format wasm writes bytes: send them to a file");
    process.stdout.write(bytes);
  } else process.stdout.write(args.format === "wat" ? await toText(bytes) : printKernel(tree));
}

function buildTree({ name, example, tree }: CatalogEntry, changes: object): KernelTree {
  try {
    return tree(changes);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`${name} cannot be built for ${JSON.stringify({ ...example, ...changes })}: ${reason}`, {
      cause,
    });
  }
}

function readSpec(text: unknown, example: object): object {
  if (text === undefined) return {};
  let spec: unknown;
  try {
    spec = JSON.parse(String(text));
  } catch (cause) {
    throw new UsageError(`--spec is not JSON: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
  if (typeof spec !== "object" || spec === null || Array.isArray(spec))
    throw new UsageError(`--spec must be an object like ${JSON.stringify(example)}`);
  return spec;
}

function moduleBytes(tree: KernelTree, wantsRelaxedSimd: boolean): Uint8Array {
  const features = detectWasmFeatures() ?? { relaxedSimd: false, sharedMemory: false };
  return wasmModule(tree, { ...features, relaxedSimd: features.relaxedSimd && wantsRelaxedSimd });
}

/** The part of the package `wabt` that is used. */
interface Wabt {
  readWasm(
    bytes: Uint8Array,
    features: Record<string, boolean>,
  ): { toText(options: Record<string, boolean>): string; destroy(): void };
}

async function toText(bytes: Uint8Array): Promise<string> {
  let load: () => Promise<Wabt>;
  try {
    // Not a dependency of the published package: required by name at run time, so that a bundler leaves it alone.
    load = createRequire(import.meta.url)("wabt");
  } catch (cause) {
    throw new CommandError("--format wat needs the package wabt: npm install wabt", { cause });
  }
  const module = (await load()).readWasm(bytes, { simd: true, relaxed_simd: true, threads: true });
  try {
    return module.toText({ foldExprs: true, inlineExport: false });
  } finally {
    module.destroy();
  }
}
