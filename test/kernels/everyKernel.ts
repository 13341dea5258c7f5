/**
 * Every kernel of src/ops: found by reading the folder, so that a new one cannot be missed, each with the specs it is built for in tests.
 * For tests only.
 */

import { readdir } from "node:fs/promises";
import { kernelCatalog } from "../../src/cli/kernelCatalog.ts";
import type { KernelDefinition } from "../../src/kernels/index.ts";
import { arithmeticFor } from "../../src/ops/matmul/index.ts";
import { weightTypes } from "../../src/tensor/index.ts";
import { storages } from "../ops/storedPages.ts";

export interface KernelSample {
  readonly name: string;
  readonly definition: KernelDefinition<object>;
  readonly specs: readonly object[];
}

const opsFolder = new URL("../../src/ops/", import.meta.url);

/** All kernels that a module of src/ops exports, in the order of their names. */
export async function everyKernel(): Promise<readonly KernelSample[]> {
  const found = new Map<string, KernelDefinition<object>>();
  for (const path of await readdir(opsFolder, { recursive: true })) {
    if (!path.endsWith(".ts") || path.endsWith(".test.ts")) continue;
    const module: Readonly<Record<string, unknown>> = await import(new URL(path, opsFolder).href);
    for (const exported of Object.values(module)) if (isKernel(exported)) found.set(exported.name, exported);
  }
  return [...found.values()]
    .map((definition) => ({ name: definition.name, definition, specs: specsOf(definition.name) }))
    .sort((a, b) => a.name.localeCompare(b.name));
}

function isKernel(exported: unknown): exported is KernelDefinition<object> {
  return typeof exported === "object" && exported !== null && "build" in exported && "params" in exported;
}

const columns = 512;
const quantized = weightTypes.filter((type) => arithmeticFor(type, "int16") === "i16");
const formatSpecs = weightTypes.map((type) => ({ type, columns }));
const integerSpecs = quantized.flatMap((type) =>
  [...new Set([arithmeticFor(type, "int8"), "i16"])].map((arithmetic) => ({ type, arithmetic })),
);

/** Where one spec says little: every weight type and arithmetic. The spec of the kernel catalogue for the others. */
function specsOf(name: string): readonly object[] {
  const tile = { columns, tokens: 2, panels: 2, hasBias: true, accumulate: true };
  switch (name) {
    case "packPanels":
    case "embedding":
      return formatSpecs;
    case "matmulF32":
      return weightTypes.map((type) => ({ ...tile, type, arithmetic: "f32" }));
    case "matmulIntegerDirect":
    case "matmulIntegerExpanded":
      return integerSpecs.map((spec) => ({ ...tile, ...spec }));
    case "quantizeActivations":
      return ["i8", "i16"].map((arithmetic) => ({ arithmetic, columns }));
    case "attention":
    case "attentionMerge":
      return ["f32", "f16"].map((storage) => ({ ...catalogueSpec(name), storage }));
    case "appendKv":
    case "kvCacheUpdate":
    case "storeLatents":
      return storages.map((storage) => ({ ...catalogueSpec(name), storage }));
    case "gatherRows":
      return [{ columns: 70 }];
    default:
      return [catalogueSpec(name)];
  }
}

function catalogueSpec(name: string): object {
  const entry = kernelCatalog.find((candidate) => candidate.name === name);
  if (entry === undefined) throw new Error(`no spec is known for the kernel ${name}: add it to the kernel catalogue`);
  return entry.example;
}
