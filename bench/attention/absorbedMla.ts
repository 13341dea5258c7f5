/** The absorbed form of multi-head latent attention, as BatchMLAPagedAttention runs it: one new token over paged latents. */

import { BatchMLAPagedAttention, type MlaDims, mlaSoftmaxScale } from "../../src/attention/mla/index.ts";
import type { CommandList, CpuDevice } from "../../src/devices/index.ts";
import { attentionCost, type Cost } from "../../src/ops/attention/index.ts";
import type { DeviceTensor } from "../../src/ops/elementwise/index.ts";
import { layersFor } from "./layers.ts";
import { operationsOf } from "./mlaOperations.ts";
import { batchOf, Memory, repeat } from "./pages.ts";
import type { Contender } from "./turns.ts";

/** How latents and rope keys are stored. */
export const storage = "f16";
export const pageSize = 64;

/** Layers of absorbed attention, each with its own latents and weights. */
export class AbsorbedLayers implements Contender {
  readonly cost: Cost;
  readonly repeats: number;
  readonly #memory: Memory;
  readonly #attention: BatchMLAPagedAttention;
  readonly #commands: CommandList;

  constructor(device: CpuDevice, dims: MlaDims, kvLen: number) {
    const { numHeads, kvLoraRank, qkRopeHeadDim, qkNopeHeadDim, vHeadDim } = dims;
    const smScale = mlaSoftmaxScale(qkNopeHeadDim, qkRopeHeadDim);
    const batch = batchOf(repeat(1, 1, kvLen), pageSize);
    const { bytes } = attentionCost(
      {
        numQHeads: numHeads,
        numKvHeads: 1,
        headDim: kvLoraRank + qkRopeHeadDim,
        headDimV: kvLoraRank,
        mla: { ropeDim: qkRopeHeadDim },
        storage,
        causal: true,
      },
      repeat(1, 1, kvLen),
    );
    const projectionRows = numHeads * (qkNopeHeadDim + vHeadDim);
    this.cost = {
      operations: operationsOf(dims, "absorbed", kvLen),
      bytes: bytes + projectionRows * kvLoraRank * 4,
    };
    this.repeats = layersFor(this.cost.bytes);
    this.#memory = new Memory(device);
    this.#attention = new BatchMLAPagedAttention(device, {
      ...dims,
      pageSize,
      storage,
      smScale,
      causal: true,
      form: "absorbed",
    });
    this.#attention.plan(batch);
    const qNope = this.#memory.floats([1, numHeads, qkNopeHeadDim]);
    const qPe = this.#memory.floats([1, numHeads, qkRopeHeadDim]);
    const out = this.#memory.zeros([1, numHeads, vHeadDim]);
    this.#commands = device.commands();
    for (let layer = 0; layer < this.repeats; layer++) {
      const latents = (channels: number): DeviceTensor => ({
        pointer: this.#memory.rows(storage, channels, batch.numPages * pageSize).units,
        shape: [batch.numPages, pageSize, channels],
        type: storage,
      });
      const cache = { ckv: latents(kvLoraRank), kpe: latents(qkRopeHeadDim) } as const;
      const kvBProj = this.#memory.floats([projectionRows, kvLoraRank], kvLoraRank ** -0.5);
      this.#attention.record({ device, commands: this.#commands }, { qNope, qPe, cache, kvBProj, out });
    }
  }

  run(): Promise<void> {
    return this.#memory.device.run(this.#commands);
  }

  release(): void {
    this.#commands.free();
    this.#attention.release();
    this.#memory.release();
  }
}
