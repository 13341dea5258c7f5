/** The device memory of a forward pass: a step's inputs, its intermediate results at full capacity, and the cache pages. */

import { type CpuDevice, type DeviceBuffer, GrowingBuffer } from "../../devices/index.ts";
import type { KvPages } from "../../ops/appendKv/index.ts";
import { hndStrides, type PageStrides, storageBytes } from "../../ops/attention/index.ts";
import { ActivationWorkspace, type WeightMatrix } from "../../ops/matmul/index.ts";
import type { ModelConfig } from "../config/index.ts";
import type { RaggedBatch } from "../runner.ts";
import type { RopeRows } from "./ropeRows.ts";
import type { LoadedWeights } from "./weights.ts";

/**
 * Keys and values of one layer: pages [page][kv head][slot][channel]. Attention reads the rows of one head; with all heads of a slot together
 * these would be a power of two apart, and share a few places of the first-level cache.
 */
export interface LayerPages {
  readonly k: KvPages;
  readonly v: KvPages;
  /** Of both, in elements. */
  readonly strides: PageStrides;
  readonly pageBytes: number;
}

/** How many cache pages there are, how many tokens each holds, and as what. */
export interface CacheSize {
  readonly numPages: number;
  readonly pageSize: number;
  readonly storage: "f32" | "f16";
}

/** Bytes that the keys and values of one token take, over all layers. */
export function cacheBytesPerToken(config: ModelConfig, storage: "f32" | "f16"): number {
  return 2 * config.numLayers * config.numKvHeads * config.headDim * storageBytes(storage);
}

/** The pages of every layer. Throws CapacityError when the device has no room for them. */
export function allocatePages(device: CpuDevice, config: ModelConfig, size: CacheSize): LayerPages[] {
  const { numPages, pageSize, storage } = size;
  const { numKvHeads, headDim } = config;
  const strides = hndStrides({ pageSize, numKvHeads, headDim });
  const pageBytes = strides.page * storageBytes(storage);
  const pages = (label: string): KvPages => ({
    pointer: device.allocate(numPages * pageBytes, label).pointer,
    type: storage,
    numSlots: numPages * pageSize,
    pageSize,
    pageStride: strides.page,
    slotStride: strides.slot,
    headStride: strides.head,
  });
  return Array.from({ length: config.numLayers }, (_, layer) => ({
    k: pages(`k pages layer ${layer}`),
    v: pages(`v pages layer ${layer}`),
    strides,
    pageBytes,
  }));
}

/** All intermediate results, for up to `maxTokens` tokens. Addresses unless said otherwise. */
export class NetworkBuffers {
  readonly tokenIds: number;
  readonly slotMapping: number;
  readonly logitsRows: number;
  /** The residual stream, f32 [tokens, hiddenSize]. */
  readonly hidden: number;
  readonly normed: number;
  readonly q: number;
  readonly k: number;
  readonly v: number;
  readonly attended: number;
  readonly gate: number;
  readonly up: number;
  readonly gathered: number;
  readonly hiddenActivations: ActivationWorkspace;
  readonly attendedActivations: ActivationWorkspace;
  readonly activatedActivations: ActivationWorkspace;
  readonly outputActivations: ActivationWorkspace;
  readonly #device: CpuDevice;
  readonly #vocabSize: number;
  readonly #maxTokens: number;
  readonly #rotationRows = new Map<RopeRows, DeviceBuffer>();
  readonly #logits: GrowingBuffer;

  constructor(device: CpuDevice, config: ModelConfig, weights: LoadedWeights, maxTokens: number) {
    this.#device = device;
    this.#vocabSize = config.vocabSize;
    this.#maxTokens = maxTokens;
    this.#logits = new GrowingBuffer(device, "logits");
    const words = (count: number, label: string): number => device.allocate(maxTokens * count * 4, label).pointer;
    const { hiddenSize, intermediateSize, headDim } = config;
    const qSize = config.numAttentionHeads * headDim;
    const kvSize = config.numKvHeads * headDim;
    this.tokenIds = words(1, "token ids");
    this.slotMapping = words(1, "slot mapping");
    this.logitsRows = words(1, "logits rows");
    this.hidden = words(hiddenSize, "hidden state");
    this.normed = words(hiddenSize, "normed state");
    this.q = words(qSize, "queries");
    this.k = words(kvSize, "keys");
    this.v = words(kvSize, "values");
    this.attended = words(qSize, "attention output");
    this.gate = words(intermediateSize, "gate");
    this.up = words(intermediateSize, "up");
    this.gathered = words(hiddenSize, "gathered state");
    const consumers = (...parts: string[]): WeightMatrix[] =>
      [...weights.matrices]
        .filter(([name]) => parts.some((part) => name === part || name.endsWith(`.${part}`)))
        .map(([, weight]) => weight);
    const workspace = (columns: number, ...parts: string[]) =>
      new ActivationWorkspace(device, columns, maxTokens, consumers(...parts));
    this.hiddenActivations = workspace(hiddenSize, "attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up");
    this.attendedActivations = workspace(qSize, "attention.o");
    this.activatedActivations = workspace(intermediateSize, "mlp.down");
    this.outputActivations = workspace(hiddenSize, config.tieWordEmbeddings ? "embedding" : "output");
  }

  /** f32 [rows, vocabSize]; `reserveLogits` makes room. */
  get logits(): number {
    return this.#logits.pointer;
  }

  reserveLogits(numRows: number): void {
    this.#logits.reserve(numRows * this.#vocabSize * 4);
  }

  logitsRow(index: number): Float32Array {
    return this.#device.f32At(this.logits + index * this.#vocabSize * 4, this.#vocabSize);
  }

  /** i32 [tokens]: each token's row of a rotation table. */
  rotationRows(rope: RopeRows): number {
    return this.#rotationBuffer(rope).pointer;
  }

  /** Copies a step's inputs to the device. */
  write(batch: RaggedBatch, ropes: Iterable<RopeRows>): void {
    const { numTokens, numSeqs, queryIndptr, positions } = batch;
    this.#device.i32At(this.tokenIds, numTokens).set(batch.tokenIds.subarray(0, numTokens));
    this.#device.i32At(this.slotMapping, numTokens).set(batch.slotMapping.subarray(0, numTokens));
    this.#device.i32At(this.logitsRows, batch.logitsRows.length).set(batch.logitsRows);
    const lengths = batch.promptLens ?? batch.kvLens;
    for (const rope of ropes) {
      const rows = this.#device.i32(this.#rotationBuffer(rope));
      for (let s = 0; s < numSeqs; s++) {
        const first = rope.firstRow(lengths[s]);
        for (let t = queryIndptr[s]; t < queryIndptr[s + 1]; t++) rows[t] = first + positions[t];
      }
    }
  }

  #rotationBuffer(rope: RopeRows): DeviceBuffer {
    let buffer = this.#rotationRows.get(rope);
    if (buffer === undefined) {
      buffer = this.#device.allocate(this.#maxTokens * 4, "rotation rows");
      this.#rotationRows.set(rope, buffer);
    }
    return buffer;
  }
}
