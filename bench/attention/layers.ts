/**
 * Attention of a batch as a step runs it: several layers one after the other, each with pages of its own, so that no layer finds its keys in
 * the caches because the run before has left them there.
 */

import { BatchAttention, type BatchAttentionSpec } from "../../src/attention/index.ts";
import type { CommandList, CpuDevice } from "../../src/devices/index.ts";
import {
  attentionCost,
  type Cost,
  type PageStorage,
  type SequenceLengths,
  valueDim,
} from "../../src/ops/attention/index.ts";
import { batchOf, Memory } from "./pages.ts";
import type { Contender } from "./turns.ts";

/** Bytes that one run reads at least: several times the caches of this kind of machine. */
const RUN_BYTES = 128 * 2 ** 20;

/** Layers so that a run reads more than the caches hold. */
export const layersFor = (bytesOfLayer: number): number => Math.max(1, Math.ceil(RUN_BYTES / bytesOfLayer));

export const pageSize = 16;

/** Llama 3 8B. */
export const llama3 = { numQHeads: 32, numKvHeads: 8, headDim: 128 } as const;

/** A layer's shape, its storage, and what may differ from a causal model's layer. */
export type LayerSpec = Omit<BatchAttentionSpec, "causal" | "smScale" | "pageSize">;

/** Layers of one spec over one batch, until `release`. */
export class AttentionLayers implements Contender {
  /** Of one layer. */
  readonly cost: Cost;
  readonly repeats: number;
  readonly attention: BatchAttention;
  readonly lengths: readonly SequenceLengths[];
  readonly #memory: Memory;
  readonly #commands: CommandList;
  readonly #allowUnseeing: boolean;

  /**
   * @param allowUnseeing Sequences may have more queries than keys, as padded ones do.
   * @param repeats Layers; by default as many as read more than the caches hold.
   */
  constructor(
    device: CpuDevice,
    layer: LayerSpec,
    lengths: readonly SequenceLengths[],
    { allowUnseeing = false, repeats }: { readonly allowUnseeing?: boolean; readonly repeats?: number } = {},
  ) {
    const spec: BatchAttentionSpec = { ...layer, causal: true, smScale: layer.headDim ** -0.5, pageSize };
    const { numQHeads, headDim, layout = "NHD" } = spec;
    this.#memory = new Memory(device);
    this.#allowUnseeing = allowUnseeing;
    this.lengths = lengths;
    this.cost = attentionCost(spec, lengths);
    this.repeats = repeats ?? layersFor(this.cost.bytes);
    this.attention = new BatchAttention(device, spec);
    this.plan();
    const { numRows, numPages } = batchOf(lengths, pageSize);
    const q = this.#memory.floats([numRows, numQHeads, headDim]);
    const out = this.#memory.zeros([numRows, numQHeads, valueDim(spec)]);
    this.#commands = device.commands();
    for (let i = 0; i < this.repeats; i++) {
      const pages = this.#memory.cache(spec, { layout, pageSize, numPages });
      this.attention.record({ device, commands: this.#commands }, { q, ...pages, out });
    }
  }

  run(): Promise<void> {
    return this.#memory.device.run(this.#commands);
  }

  /** The batch of a step. */
  batch() {
    return { ...batchOf(this.lengths, pageSize), allowUnseeing: this.#allowUnseeing };
  }

  /** Plans the step once more. */
  plan(): void {
    this.attention.plan(this.batch());
  }

  release(): void {
    this.#commands.free();
    this.attention.release();
    this.#memory.release();
  }
}

/** "int4", "f16": a storage as a table names it. */
export function storageName(storage: PageStorage): string {
  if (typeof storage === "string")
    return { f8e4m3: "fp8 e4m3", f8e5m2: "fp8 e5m2", i8: "int8" }[storage as string] ?? storage;
  if (storage.kind === "tiled") return `fp8 by ${storage.tile}`;
  return `int${storage.bits} by ${storage.groupSize === 0 ? "row" : storage.groupSize}`;
}
