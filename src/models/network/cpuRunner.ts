/** A model on the CPU device: owns its weights, cache pages and buffers, and runs ragged batches. */

import type { PageCopy } from "../../cache/index.ts";
import { type CommandList, type CpuDevice, GrowingBuffer } from "../../devices/index.ts";
import { type AttentionSpec, CpuAttentionPlan } from "../../ops/attention/index.ts";
import { recordCopyPages } from "../../ops/copyPages/index.ts";
import { recordRowStatistics, rowStatisticsWords } from "../../ops/logits/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { ModelConfig } from "../config/index.ts";
import type { LogitsBatch, ModelRunner, RaggedBatch } from "../runner.ts";
import { allocatePages, type CacheSize, type LayerPages, NetworkBuffers } from "./buffers.ts";
import { type DecoderState, recordDecoder } from "./decoder.ts";
import { RopeRows } from "./ropeRows.ts";
import type { LoadedWeights } from "./weights.ts";

/** Sizes that the buffers are made for. */
export interface CpuRunnerOptions extends CacheSize {
  /** Most tokens of one batch. */
  readonly maxNumBatchedTokens: number;
}

/** A model's forward pass on the CPU device. One batch at a time: await `execute` before the next. */
export class CpuRunner implements ModelRunner {
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly pageSize: number;
  readonly numPages: number;
  readonly #device: CpuDevice;
  readonly #state: DecoderState;
  readonly #maxTokens: number;
  readonly #commands: CommandList;
  readonly #plans: readonly CpuAttentionPlan[];
  readonly #ropes: readonly RopeRows[];
  readonly #statistics: GrowingBuffer;
  readonly #copyBuffer: GrowingBuffer;
  #copies: PageCopy[] = [];
  /** Of the recording in `#commands`; undefined when it must not be run again. */
  #lastKey: string | undefined;

  /** Takes the device and the weights over: `close` closes the device. */
  constructor(device: CpuDevice, config: ModelConfig, weights: LoadedWeights, options: CpuRunnerOptions) {
    this.#device = device;
    this.vocabSize = config.vocabSize;
    this.maxPositions = config.maxPositionEmbeddings;
    this.pageSize = options.pageSize;
    this.numPages = options.numPages;
    this.#maxTokens = options.maxNumBatchedTokens;
    this.#commands = device.commands();
    this.#statistics = new GrowingBuffer(device, "logit statistics");
    this.#copyBuffer = new GrowingBuffer(device, "page copies");
    const plans = new Map<string, CpuAttentionPlan>();
    const ropes = new Map<string, RopeRows>();
    const layerPlans = config.layers.map(({ slidingWindow }) => {
      const spec = attentionSpec(config, options, slidingWindow);
      return getOrMake(plans, JSON.stringify(spec), () => new CpuAttentionPlan(device, spec));
    });
    const layerRopes = config.layers.map(({ rope }) =>
      getOrMake(ropes, JSON.stringify(rope), () => new RopeRows(device, rope, config.maxPositionEmbeddings)),
    );
    this.#plans = [...plans.values()];
    this.#ropes = [...ropes.values()];
    this.#state = {
      config,
      weights,
      buffers: new NetworkBuffers(device, config, weights, options.maxNumBatchedTokens),
      pages: allocatePages(device, config, options),
      plans: layerPlans,
      ropes: layerRopes,
    };
  }

  cacheVariant(promptLength: number): string {
    return this.#ropes.some((rope) => rope.isLong(promptLength)) ? "long rotation" : "";
  }

  /** The copies are made when the next `execute` begins. */
  copyPages(copies: readonly PageCopy[]): void {
    this.#copies.push(...copies);
  }

  /**
   * Runs the batch. Rejects with ArgumentError for one with more tokens than the buffers hold, DeviceError when a kernel or worker fails.
   * The rows of the result are views until the next batch; `greedy` and `logSumExp` (natural log) are copies.
   */
  async execute(batch: RaggedBatch): Promise<LogitsBatch> {
    const { numTokens, numSeqs } = batch;
    if (numTokens > this.#maxTokens)
      throw new ArgumentError(`a batch may have ${this.#maxTokens} tokens, got ${numTokens}`);
    const copies = this.#copies;
    this.#copies = [];
    const { buffers } = this.#state;
    let longest = 0;
    for (let s = 0; s < numSeqs; s++) longest = Math.max(longest, batch.kvLens[s]);
    for (const rope of this.#ropes) rope.reserve(longest);
    buffers.write(batch, this.#ropes);
    for (const plan of this.#plans) plan.update({ ...batch, numRows: numTokens, numPages: this.numPages });
    const numLogits = batch.logitsRows.length;
    buffers.reserveLogits(numLogits);

    const withLogSumExp = batch.wantsLogSumExp === true;
    const statistics = this.#reserveStatistics(numLogits);
    const commands = this.#commands;
    const key = copies.length > 0 ? undefined : this.#recordingKey(numTokens, numLogits, statistics, withLogSumExp);
    // Most steps of a steady decode differ in the contents of buffers only: the last recording is then run again.
    if (key === undefined || key !== this.#lastKey) {
      this.#lastKey = undefined;
      commands.reset();
      this.#recordCopies(copies);
      recordDecoder({ device: this.#device, commands }, this.#state, { numTokens, numLogits });
      this.#recordStatistics(numLogits, statistics, withLogSumExp);
      this.#lastKey = key;
    }
    await this.#device.run(commands);
    return {
      numRows: numLogits,
      vocabSize: this.vocabSize,
      row: (index) => buffers.logitsRow(index),
      greedy: this.#device.i32At(statistics, numLogits).slice(),
      ...(withLogSumExp ? { logSumExp: this.#device.f32At(statistics + numLogits * 8, numLogits).slice() } : {}),
    };
  }

  /** Closes the device, and frees with it all that the model takes. */
  async close(): Promise<void> {
    await this.#device.close();
  }

  #recordCopies(copies: readonly PageCopy[]): void {
    const { pages } = this.#state;
    if (copies.length === 0) return;
    const host = Int32Array.from(copies.flatMap(({ from, to }) => [from, to]));
    const list = this.#copyBuffer.reserve(host.byteLength);
    this.#device.i32(list).set(host);
    const buffersOf = ({ k, v, pageBytes }: LayerPages) =>
      [k, v].map(({ pointer }) => ({ pointer, pageBytes, numPages: this.numPages }));
    const buffers = pages.flatMap(buffersOf);
    let first = 0;
    for (const numCopies of independentRuns(copies)) {
      recordCopyPages(
        { device: this.#device, commands: this.#commands },
        {
          copies: { pointer: list.pointer + first * 8, shape: [numCopies, 2], type: "i32" },
          copiesOnHost: host.subarray(2 * first, 2 * (first + numCopies)),
          numCopies,
          buffers,
        },
      );
      first += numCopies;
    }
  }

  /** All that a recording depends on besides the contents of buffers. */
  #recordingKey(numTokens: number, numLogits: number, statistics: number, withLogSumExp: boolean): string {
    const pointers = [this.#state.buffers.logits, statistics, ...this.#ropes.map((rope) => rope.pointer)];
    return [numTokens, numLogits, withLogSumExp, ...pointers, ...this.#plans.map((plan) => plan.recordingKey)].join();
  }

  /** Room for the argmax, the maximum, the log of the sum and the working memory of each row; gives its address. */
  #reserveStatistics(numRows: number): number {
    return this.#statistics.reserve(Math.max(1, numRows) * (3 + rowStatisticsWords(this.vocabSize)) * 4).pointer;
  }

  /** Records the argmax of each row of logits, which will be at `pointer`, and the log of the sum of exponentials, two rows on. */
  #recordStatistics(numRows: number, pointer: number, withLogSumExp: boolean): void {
    if (numRows === 0) return;
    recordRowStatistics(
      { device: this.#device, commands: this.#commands },
      { withLogSumExp },
      {
        logits: { pointer: this.#state.buffers.logits, shape: [numRows, this.vocabSize], type: "f32" },
        argmax: { pointer, shape: [numRows], type: "i32" },
        max: { pointer: pointer + numRows * 4, shape: [numRows], type: "f32" },
        ...(withLogSumExp ? { logSumExp: { pointer: pointer + numRows * 8, shape: [numRows], type: "f32" } } : {}),
        workspace: {
          pointer: pointer + numRows * 12,
          shape: [numRows * rowStatisticsWords(this.vocabSize)],
          type: "i32",
        },
      },
    );
  }
}

/** Lengths of the runs of copies that can be made in any order: a page that is read or written again begins the next. */
function independentRuns(copies: readonly PageCopy[]): number[] {
  const runs: number[] = [];
  let read = new Set<number>();
  let written = new Set<number>();
  for (const { from, to } of copies) {
    if (runs.length === 0 || written.has(from) || written.has(to) || read.has(to)) {
      runs.push(0);
      read = new Set();
      written = new Set();
    }
    runs[runs.length - 1]++;
    read.add(from);
    written.add(to);
  }
  return runs;
}

function attentionSpec(config: ModelConfig, cache: CacheSize, slidingWindow: number | null): AttentionSpec {
  return {
    headDim: config.headDim,
    numQHeads: config.numAttentionHeads,
    numKvHeads: config.numKvHeads,
    pageSize: cache.pageSize,
    storage: cache.storage,
    causal: true,
    smScale: config.attentionScale,
    ...(slidingWindow === null ? {} : { slidingWindow }),
    ...(config.attentionSoftCap === null ? {} : { softCap: config.attentionSoftCap }),
  };
}

function getOrMake<V>(map: Map<string, V>, key: string, make: () => V): V {
  let value = map.get(key);
  if (value === undefined) {
    value = make();
    map.set(key, value);
  }
  return value;
}
