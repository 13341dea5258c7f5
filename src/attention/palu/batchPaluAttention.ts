/**
 * Attention over Palu's latents on tensors: `plan` once a step, `run` or `record` once a layer, whatever the ranks of the layer. Decode,
 * prefill and prefill after a cached prefix are the same call. Source: Chang et al. 2024 (arXiv 2407.21118).
 */
import type { CpuDevice } from "../../devices/index.ts";
import { type AttentionBatch, CpuAttentionPlan, type LatentRanks, recordAttention } from "../../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../../ops/elementwise/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import type { PlanOptions } from "../batchAttention.ts";
import { checkLse, headVector, ropeTablePointer } from "../layerTensors.ts";
import { type AttentionResult, freeResult, resultsOf, runRecorded } from "../results.ts";
import { checkHeads, checkTensor } from "../tensors.ts";
import { type LatentCache, locateLatents } from "./cache.ts";
import type { PaluLayer } from "./layer.ts";
import { type PaluSpec, paluKernelSpec } from "./spec.ts";

/** The tensors of one layer. Shapes with numRows and numPages of the batch are least sizes. */
export interface BatchPaluArgs {
  readonly layer: PaluLayer;
  /** [numRows, numQHeads, headDim] f32, rotated; with absorbed keys [numRows, numQHeads, maxRankK] from `PaluLayer.recordAbsorb` */
  readonly q: RowsTensor;
  readonly cache: LatentCache;
  /** [windows, capacity, sum of the ranks] of the spec's `recent` type. */
  readonly recent?: { readonly k: DeviceTensor; readonly v: DeviceTensor };
  /**
   * [numRows, LatentLayout.outRow] f32: latent values, for each query head in order as many as the rank of its group. Allocated if absent.
   */
  readonly out?: RowsTensor;
  /** [numRows, numQHeads] f32; allocated if absent and the spec has returnLse. */
  readonly lse?: DeviceTensor;
  /** [numQHeads] f32, for a spec with alibi. */
  readonly alibiSlopes?: DeviceTensor;
  /** [numQHeads] f32, for a spec with sinks. */
  readonly sinks?: DeviceTensor;
  /** [positions, rope.dim] f32, rows as RopeTable writes them, for a spec with rope. */
  readonly ropeTable?: DeviceTensor;
  /** Factor on the logits, for latents stored divided by it, recent ones too; 1 by default, and with a bias of the keys. */
  readonly kScale?: number;
  /** Factor on the output, for latents stored divided by it; 1 by default. */
  readonly vScale?: number;
}

/**
 * Attention over latents of one spec on one device. Keys are rebuilt once for each key/value head and shared by its query heads; outputs
 * stay latents, for a fused output projection (`fuseOutputProjection`) or `PaluLayer.recordExpand`. Memory only grows, until `release`.
 */
export class BatchPaluAttention {
  readonly device: CpuDevice;
  readonly spec: PaluSpec;
  readonly #planned: CpuAttentionPlan;

  /**
   * Compiles the kernels. Throws ArgumentError for a spec that is out of range.
   *
   * @param threads How many workers the work list should keep busy; 1 never splits a sequence's keys. The result does not depend on it.
   */
  constructor(device: CpuDevice, spec: PaluSpec, threads = device.threads) {
    this.device = device;
    this.spec = spec;
    this.#planned = new CpuAttentionPlan(device, paluKernelSpec(spec), threads);
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it; see CpuAttentionPlan. */
  get recordingKey(): string {
    return this.#planned.recordingKey;
  }

  /** Plans a step; not while a run that uses the last plan is under way. Throws ArgumentError naming what does not fit. */
  plan(batch: AttentionBatch, options: PlanOptions = {}): void {
    this.#planned.update(batch, options);
  }

  /** Records the attention of one layer. Throws ShapeError or ArgumentError naming the tensor that does not fit. */
  record(recorder: Recorder, args: BatchPaluArgs): AttentionResult {
    if (recorder.device !== this.device) throw new ArgumentError("record: the recorder belongs to another device");
    const { spec } = this;
    const { numQHeads, headDim, maxRankK } = spec;
    const { numRows, numPages } = this.#planned.plan.batch;
    const { layer, kScale, vScale } = args;
    const { layout } = layer;
    this.#checkLayer(layer);
    if (spec.keyBias && kScale !== undefined && kScale !== 1) {
      throw new ArgumentError(`kScale must be 1 with keyBias, got ${kScale}: it would scale the bias too`);
    }
    const shared = {
      ...locateLatents(args.cache, layout, { ...spec, numPages }),
      latent: spec.equalRanks ? undefined : this.#latentArgs(args),
      qRowStride: checkHeads("q", args.q, numRows, numQHeads, spec.keys === "absorbed" ? maxRankK : headDim),
      alibiSlopes: headVector("alibiSlopes", args.alibiSlopes, spec),
      sinks: headVector("sinks", args.sinks, spec),
      ropeTable: ropeTablePointer(args.ropeTable, spec.rope, this.#planned.plan.batch),
      kScale,
      vScale,
    };
    const outRowStride = args.out ? checkLatentRows("out", args.out, numRows, layout.outRow) : layout.outRow;
    if (args.lse) checkLse(args.lse, spec, numRows);
    const lseShape = spec.returnLse ? [numRows, numQHeads] : undefined;
    const result = resultsOf(this.device, "latent attention", args, [numRows, layout.outRow], lseShape);
    const pointers = { q: args.q.pointer, out: result.out.pointer, outRowStride, lse: result.lse?.pointer };
    try {
      recordAttention(recorder, this.#planned, { ...shared, ...pointers });
    } catch (error) {
      freeResult(this.device, result);
      throw error;
    }
    return result;
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BatchPaluArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the plan's device memory back. */
  release(): void {
    this.#planned.release();
  }

  /** A layer carries its own copy of what it was made for; a table of other heads would send the kernel anywhere. */
  #checkLayer(layer: PaluLayer): void {
    if (layer.device !== this.device) throw new ArgumentError("layer belongs to another device");
    const { numGroups } = this.spec;
    if (numGroups !== undefined && numGroups !== layer.layout.numGroups) {
      throw new ArgumentError(`layer has ${layer.layout.numGroups} groups, the spec has numGroups = ${numGroups}`);
    }
    if (this.spec.equalRanks) checkEqualRanks(layer.layout, this.spec);
    const names = ["numQHeads", "numKvHeads", "headDim", "maxRankK", "maxRankV", "keyBias"] as const;
    for (const name of names) {
      const [own, its] = [this.spec[name] ?? false, layer.spec[name] ?? false];
      if (own !== its) throw new ArgumentError(`layer was made for ${name} = ${its}, the spec has ${own}`);
    }
    for (const name of ["storage", "valueStorage"] as const) {
      const [own, its] = [this.spec, layer.spec].map((spec) => JSON.stringify(spec[name] ?? spec.storage));
      if (own !== its) throw new ArgumentError(`layer was made for ${name} = ${its}, the spec has ${own}`);
    }
  }

  #latentArgs(args: BatchPaluArgs) {
    const { table, groupTable, upK, keyBias } = args.layer;
    const isByGroup = this.spec.numGroups !== undefined;
    return { table: isByGroup ? groupTable : table, up: upK, bias: keyBias, ...this.#recent(args) };
  }

  #recent({ recent, layer }: BatchPaluArgs) {
    const { recent: type } = this.spec;
    if ((type === undefined) !== (recent === undefined)) {
      throw new ArgumentError(`recent must be ${type ? "given" : "absent"}: the spec's recent is ${type}`);
    }
    const windows = this.#planned.plan.batch.recent;
    if (!type || !recent || !windows) return {};
    const { keyRanks, valueRanks } = layer.layout;
    for (const [name, tensor, row] of [
      ["recent.k", recent.k, keyRanks],
      ["recent.v", recent.v, valueRanks],
    ] as const) {
      const [numWindows] = tensor.shape;
      if (numWindows < windows.numWindows) {
        throw new ShapeError(`${name} must have at least ${windows.numWindows} windows, got ${numWindows}`);
      }
      checkTensor(name, tensor, type, [numWindows, windows.capacity, row]);
    }
    return {
      recentK: recent.k.pointer,
      recentV: recent.v.pointer,
      recentRowK: keyRanks,
      recentRowV: valueRanks,
    };
  }
}

/** Checks rows of packed latents, [at least numRows, row], and returns their row stride in elements. */
function checkLatentRows(name: string, tensor: RowsTensor, numRows: number, row: number): number {
  const { shape, rowStride = row } = tensor;
  if (shape.length !== 2 || shape[0] < numRows || shape[1] !== row) {
    throw new ShapeError(`${name} must have shape [at least ${numRows}, ${row}], got [${shape.join(", ")}]`);
  }
  checkTensor(name, tensor, "f32", shape);
  if (Number.isInteger(rowStride) && rowStride >= row) return rowStride;
  throw new ArgumentError(`${name}.rowStride must be an integer of at least ${row}, got ${rowStride}`);
}

/** Throws ArgumentError for a rank that is not the one of the spec. */
function checkEqualRanks({ ranksK, ranksV }: LatentRanks, { maxRankK, maxRankV }: PaluSpec): void {
  for (const [name, ranks, rank] of [
    ["ranksK", ranksK, maxRankK],
    ["ranksV", ranksV, maxRankV],
  ] as const) {
    if (ranks.every((own) => own === rank)) continue;
    throw new ArgumentError(`layer has ${name} [${ranks.join(", ")}], the spec's equalRanks wants ${rank} everywhere`);
  }
}
