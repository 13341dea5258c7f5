/** Attention over Palu's latents of one sequence that decodes, several layers one after the other. */

import {
  allocateLatentCache,
  BatchPaluAttention,
  PaluLayer,
  type PaluSpec,
  paluKernelSpec,
} from "../../src/attention/index.ts";
import type { CommandList, CpuDevice } from "../../src/devices/index.ts";
import {
  type Cost,
  type LatentRanks,
  latentAttentionCost,
  latentTokenBytes,
  type PageStorage,
} from "../../src/ops/attention/index.ts";
import { RopeTable } from "../../src/ops/rope/index.ts";
import { layersFor, pageSize } from "./layers.ts";
import { batchOf, Memory, repeat, uniform } from "./pages.ts";
import type { Contender } from "./turns.ts";

/** Llama 2 7B, which Palu's paper measures. */
export const heads = { numQHeads: 32, numKvHeads: 32, headDim: 128 } as const;

/** Layers of attention over latents of one sequence that decodes. */
export class PaluLayers implements Contender {
  /** Of one layer. */
  readonly cost: Cost;
  readonly repeats: number;
  readonly tokenBytes: number;
  readonly #memory: Memory;
  readonly #attention: BatchPaluAttention;
  readonly #layer: PaluLayer;
  readonly #caches: readonly { release(): void }[];
  readonly #commands: CommandList;

  constructor(
    device: CpuDevice,
    {
      ranks,
      keys,
      storage,
      kvLen,
    }: {
      readonly ranks: LatentRanks;
      readonly keys: "rebuilt" | "absorbed";
      readonly storage: PageStorage;
      readonly kvLen: number;
    },
  ) {
    const { numQHeads, headDim } = heads;
    const [maxRankK, maxRankV] = [Math.max(...ranks.ranksK), Math.max(...ranks.ranksV)];
    const spec: PaluSpec = {
      ...heads,
      pageSize,
      storage,
      causal: true,
      smScale: headDim ** -0.5,
      maxRankK,
      maxRankV,
      keys,
      ...(keys === "rebuilt" && { rope: { style: "halves", dim: headDim } }),
    };
    const lengths = repeat(1, 1, kvLen);
    const kernelSpec = paluKernelSpec(spec);
    this.cost = latentAttentionCost(kernelSpec, ranks, lengths);
    this.tokenBytes = latentTokenBytes(kernelSpec, ranks);
    this.repeats = layersFor(this.cost.bytes);
    this.#memory = new Memory(device);
    const upElements = heads.numKvHeads * ranks.ranksK[0] * headDim;
    const upK = uniform(upElements).map((x) => x * ranks.ranksK[0] ** -0.5);
    this.#layer = new PaluLayer(device, spec, { ...ranks, upK });
    const shared = keys === "absorbed" ? { numGroups: ranks.ranksK.length, equalRanks: true } : {};
    this.#attention = new BatchPaluAttention(device, { ...spec, ...shared });
    const batch = batchOf(lengths, pageSize);
    this.#attention.plan(batch);
    const { layout } = this.#layer;
    const q = this.#memory.floats([1, numQHeads, headDim]);
    const absorbed = this.#memory.zeros([1, numQHeads, maxRankK]);
    const out = this.#memory.zeros([1, layout.outRow]);
    const table = spec.rope && ropeTable(this.#memory, spec.rope.dim, kvLen);
    this.#commands = device.commands();
    const recorder = { device, commands: this.#commands };
    this.#caches = Array.from({ length: this.repeats }, () => {
      const cache = allocateLatentCache(device, layout, { storage, numPages: batch.numPages, pageSize });
      const numRows = batch.numPages * pageSize * layout.numGroups;
      for (const [side, rank] of [
        ["k", maxRankK],
        ["v", maxRankV],
      ] as const) {
        const place = { units: cache.pages[side].pointer, scales: cache.scales?.[side].pointer ?? 0 };
        this.#memory.fill(place, storage, rank, numRows);
      }
      if (keys === "absorbed") this.#layer.recordAbsorb(recorder, q, absorbed);
      const shared = { layer: this.#layer, cache, out, ropeTable: table };
      this.#attention.record(recorder, { ...shared, q: keys === "absorbed" ? absorbed : q });
      return cache;
    });
  }

  run(): Promise<void> {
    return this.#memory.device.run(this.#commands);
  }

  release(): void {
    this.#commands.free();
    this.#attention.release();
    this.#layer.release();
    for (const cache of this.#caches) cache.release();
    this.#memory.release();
  }
}

function ropeTable(memory: Memory, rotaryDim: number, numPositions: number) {
  const table = new RopeTable({
    headDim: rotaryDim,
    rotaryDim,
    style: "halves",
    theta: 10000,
    scaling: { type: "default" },
  });
  return memory.values(table.rows(numPositions), [numPositions, rotaryDim]);
}
