/**
 * The vanilla form of multi-head latent attention, as a step without absorption computes it: keys and values of every head from all latents
 * by one large matrix product, then attention over them. Only mla.ts's comparison needs it.
 */

import { type MlaDims, mlaSoftmaxScale } from "../../src/attention/mla/index.ts";
import type { CommandList, CpuDevice } from "../../src/devices/index.ts";
import { type Cost, CpuAttentionPlan, recordAttention } from "../../src/ops/attention/index.ts";
import { recordCopyHeads } from "../../src/ops/copyHeads/index.ts";
import { allocateWeightMatrix, recordMatmul, recordPackRows, type WeightMatrix } from "../../src/ops/matmul/index.ts";
import { operationsOf } from "./mlaOperations.ts";
import { Memory } from "./pages.ts";
import type { Contender } from "./turns.ts";

/** Heads whose keys and values are rebuilt at a time: those of 128 heads would not fit into a device's memory. */
export const headsAtOnce = 16;

/** Weights of the largest number of heads so far: a matrix stays on its device. */
const weightsOf = new WeakMap<CpuDevice, WeightMatrix>();

/** A run computes one group of heads, in turn; its time stands for one of as many groups as there are. */
export class VanillaMla implements Contender {
  /** Of all heads. */
  readonly cost: Cost;
  /** A fraction: a run is that part of all heads. */
  readonly repeats: number;
  readonly #dims: MlaDims;
  readonly #kvLen: number;
  readonly #memory: Memory;
  readonly #plan: CpuAttentionPlan;
  readonly #groups: CommandList[] = [];
  #next = 0;

  constructor(device: CpuDevice, dims: MlaDims, kvLen: number) {
    const { numHeads, kvLoraRank, qkRopeHeadDim, qkNopeHeadDim, vHeadDim } = dims;
    this.#dims = dims;
    this.#kvLen = kvLen;
    this.#memory = new Memory(device);
    const headDim = qkNopeHeadDim + qkRopeHeadDim;
    const numGroups = numHeads / headsAtOnce;
    this.repeats = 1 / numGroups;
    const weights = numHeads * (qkNopeHeadDim + vHeadDim) * kvLoraRank;
    const rebuilt = kvLen * numHeads * (headDim + vHeadDim);
    // What is rebuilt is written and read once.
    const elements = kvLen * (kvLoraRank + qkRopeHeadDim) + weights + 2 * rebuilt;
    this.cost = { operations: operationsOf(dims, "vanilla", kvLen), bytes: elements * 4 };
    this.#plan = new CpuAttentionPlan(device, {
      headDim,
      headDimV: vHeadDim,
      numQHeads: headsAtOnce,
      numKvHeads: headsAtOnce,
      storage: "f32",
      causal: true,
      smScale: mlaSoftmaxScale(qkNopeHeadDim, qkRopeHeadDim),
    });
    this.#plan.update({
      numRows: 1,
      numSeqs: 1,
      queryIndptr: Int32Array.of(0, 1),
      kvLens: Int32Array.of(kvLen),
      blockTables: Int32Array.of(0),
      maxPages: 1,
      numPages: kvLen,
    });
  }

  /** Packs the weights and records the groups. */
  async prepare(): Promise<void> {
    const { device } = this.#memory;
    const { numHeads, kvLoraRank, qkRopeHeadDim, qkNopeHeadDim, vHeadDim } = this.#dims;
    const weight = await packedWeights(device, numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank);
    const [headDim, width] = [qkNopeHeadDim + qkRopeHeadDim, qkNopeHeadDim + vHeadDim];
    const kvLen = this.#kvLen;
    const latents = this.#memory.floats([kvLen, kvLoraRank]);
    const ropeKeys = this.#memory.floats([kvLen, headsAtOnce, qkRopeHeadDim].with(1, 1));
    const products = this.#memory.zeros([kvLen, headsAtOnce, width]);
    const keys = this.#memory.zeros([kvLen, headsAtOnce, headDim]);
    const q = this.#memory.floats([numHeads, headDim]);
    const out = this.#memory.zeros([numHeads, vHeadDim]);
    const rowsAtOnce = headsAtOnce * width;
    const groupBytes = (weight.numBytes / weight.rows) * rowsAtOnce;
    for (let group = 0; group < numHeads / headsAtOnce; group++) {
      const commands = device.commands();
      const recorder = { device, commands };
      recordMatmul(recorder, {
        weight: { ...weight, rows: rowsAtOnce, numBytes: groupBytes, pointer: weight.pointer + group * groupBytes },
        activations: latents.pointer,
        out: products.pointer,
        numTokens: kvLen,
      });
      // The rotated channels are the same for all heads.
      const [nope, rope] = [
        [kvLen, headsAtOnce, qkNopeHeadDim],
        [kvLen, headsAtOnce, qkRopeHeadDim],
      ];
      recordCopyHeads(
        recorder,
        { channels: qkNopeHeadDim },
        {
          x: { ...products, shape: nope, headStride: width, rowStride: rowsAtOnce },
          out: { ...keys, shape: nope, headStride: headDim, rowStride: headsAtOnce * headDim },
        },
        { overlap: true },
      );
      recordCopyHeads(
        recorder,
        { channels: qkRopeHeadDim },
        {
          x: { ...ropeKeys, shape: rope, headStride: 0, rowStride: qkRopeHeadDim },
          out: {
            type: "f32",
            pointer: keys.pointer + qkNopeHeadDim * 4,
            shape: rope,
            headStride: headDim,
            rowStride: headsAtOnce * headDim,
          },
        },
      );
      recordAttention(recorder, this.#plan, {
        q: q.pointer + group * headsAtOnce * headDim * 4,
        kPages: keys.pointer,
        vPages: products.pointer + qkNopeHeadDim * 4,
        vStrides: { page: rowsAtOnce, slot: rowsAtOnce, head: width },
        out: out.pointer + group * headsAtOnce * vHeadDim * 4,
      });
      this.#groups.push(commands);
    }
  }

  run(): Promise<void> {
    return this.#memory.device.run(this.#groups[this.#next++ % this.#groups.length]);
  }

  release(): void {
    for (const commands of this.#groups) commands.free();
    this.#plan.release();
    this.#memory.release();
  }
}

async function packedWeights(device: CpuDevice, rows: number, columns: number): Promise<WeightMatrix> {
  const held = weightsOf.get(device);
  if (held && held.rows >= rows) return held;
  const weight = allocateWeightMatrix(device, { name: "kv_b_proj", type: "F32", rows, columns, precision: "f32" });
  const memory = new Memory(device);
  const commands = device.commands();
  const stored = memory.floats([rows, columns], columns ** -0.5);
  recordPackRows({ device, commands }, weight, stored.pointer, 0, rows);
  await device.run(commands);
  commands.free();
  memory.release();
  weightsOf.set(device, weight);
  return weight;
}
