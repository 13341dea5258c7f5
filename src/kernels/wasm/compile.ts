/** The WebAssembly back end's front door: a definition and a spec in, module bytes out. */

import { KernelBuilder, type KernelDefinition, type ParameterTypes } from "../builder.ts";
import type { KernelTree } from "../tree.ts";
import { ByteWriter } from "./bytes.ts";
import { emitFunction } from "./emit.ts";
import type { WasmFeatures } from "./features.ts";

/** A kernel as a WebAssembly module, not yet instantiated. */
export interface CompiledKernel {
  readonly name: string;
  readonly params: KernelTree["params"];
  /** A module that imports `env.memory` and exports `run(params, taskBegin, taskEnd, scratch)`. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly scratchBytes: number;
}

/** f32 and i32 lanes of a WebAssembly vector. */
export const wasmTarget = { lanes: 4 } as const;

const i32Type = 0x7f;
const maxPages = 65536;

/** Builds the tree of `definition` for `spec` and emits it as a module for an engine with these features. */
export function compileWasm<Spec, P extends ParameterTypes>(
  definition: KernelDefinition<Spec, P>,
  spec: Spec,
  features: WasmFeatures,
): CompiledKernel {
  const tree = KernelBuilder.tree(definition, spec, wasmTarget);
  return { name: tree.name, params: tree.params, bytes: wasmModule(tree, features), scratchBytes: tree.scratchBytes };
}

/** The module around the one function. */
export function wasmModule(tree: KernelTree, features: WasmFeatures): Uint8Array<ArrayBuffer> {
  const module = new ByteWriter().bytes([0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00]);
  const section = (id: number, content: ByteWriter): void => {
    module.byte(id).sized(content);
  };
  section(1, new ByteWriter().bytes([1, 0x60, 4, i32Type, i32Type, i32Type, i32Type, 0]));
  const memoryLimits = features.sharedMemory ? 0x03 : 0x01;
  section(
    2,
    new ByteWriter().unsigned(1).name("env").name("memory").bytes([0x02, memoryLimits]).unsigned(0).unsigned(maxPages),
  );
  section(3, new ByteWriter().bytes([1, 0]));
  section(7, new ByteWriter().unsigned(1).name("run").bytes([0x00, 0]));
  section(10, new ByteWriter().unsigned(1).sized(emitFunction(tree, features)));
  return module.finish();
}
