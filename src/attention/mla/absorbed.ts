/**
 * Attention of absorbed queries over a paged latent cache: one key/value head that all query heads share, keys of kvLoraRank +
 * qkRopeHeadDim channels whose first kvLoraRank are the values. What turns queries into absorbed ones, and latent results into heads, is
 * in batchMla.ts. DeepSeek-V2 (arXiv 2405.04434); FlashInfer's MLA decode; FlashMLA.
 */
import type { CpuDevice } from "../../devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  CpuAttentionPlan,
  recordAttention,
  requireInteger,
} from "../../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../../ops/elementwise/index.ts";
import type { HeadsTensor } from "../../ops/headProjection/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { PlanOptions } from "../batchAttention.ts";
import { checkLse, headVector, ropeTablePointer } from "../layerTensors.ts";
import { type AttentionResult, freeResult, resultsOf, runRecorded } from "../results.ts";
import { checkHeads as checkRowsOfHeads } from "../tensors.ts";
import { locateMlaCache, type MlaCacheSpec, type MlaCacheTensors, mlaStorages } from "./cache.ts";
import type { MlaDims } from "./dims.ts";
import { type QueryRows, queryChannels, recordQueries } from "./queries.ts";
import { Workspace } from "./workspace.ts";

/** What compiles a kernel, and how tokens are cached. The fields that are not here are AttentionSpec's. */
export interface AbsorbedMlaSpec
  extends Pick<MlaDims, "numHeads" | "kvLoraRank" | "qkRopeHeadDim">,
    MlaCacheSpec,
    Pick<
      AttentionSpec,
      "smScale" | "causal" | "slidingWindow" | "softCap" | "sinks" | "returnLse" | "lseBase" | "splitSize"
    > {
  /** The cache holds rope keys that are not rotated, and queries come so too: both are rotated when they are read. */
  readonly rope?: { readonly style: "halves" | "interleaved" };
}

/** Queries in one tensor or in two parts. */
export interface MlaQueries {
  /** [numRows, numHeads, kvLoraRank + qkRopeHeadDim] f32 */
  readonly q?: RowsTensor;
  /** [rows of the batch, numHeads, kvLoraRank] f32: queries times W_UK. */
  readonly qLatent?: HeadsTensor;
  /** [rows, numHeads, qkRopeHeadDim] f32; absent if that is 0. */
  readonly qPe?: HeadsTensor;
}

/** The tensors of one layer. */
export interface AbsorbedMlaArgs extends MlaQueries {
  readonly cache: MlaCacheTensors;
  /** [numRows, numHeads, kvLoraRank] f32: takes the weighted sums of latents; allocated if absent. */
  readonly out?: RowsTensor;
  /** [numRows, numHeads] f32; allocated if absent and the spec has returnLse. */
  readonly lse?: DeviceTensor;
  /** [numHeads] f32, for a spec with sinks. */
  readonly sinks?: DeviceTensor;
  /** [positions, qkRopeHeadDim] f32, rows as RopeTable writes them, for a spec with rope. */
  readonly ropeTable?: DeviceTensor;
  /** What cached latents and rope keys have been divided by; 1 by default. */
  readonly ckvScale?: number;
  readonly kpeScale?: number;
  /** Factors on all logits and on the output, besides the scales of the cache; 1 by default. */
  readonly kScale?: number;
  readonly vScale?: number;
}

/** Attention over latents of one spec on one device: `plan` once a step, `record` once a layer. Memory only grows, until `release`. */
export class AbsorbedMla {
  readonly device: CpuDevice;
  readonly spec: AbsorbedMlaSpec;
  readonly #planned: CpuAttentionPlan;
  readonly #workspace: Workspace;
  readonly #ownsWorkspace: boolean;

  /**
   * Compiles the kernels. Throws ArgumentError for a spec that is out of range.
   *
   * @param workspace Shared with others that are recorded one after the other; its owner reserves "queries" before any of them records.
   */
  constructor(device: CpuDevice, spec: AbsorbedMlaSpec, workspace?: Workspace) {
    this.device = device;
    this.spec = spec;
    this.#planned = new CpuAttentionPlan(device, attentionSpec(spec));
    this.#ownsWorkspace = workspace === undefined;
    this.#workspace = workspace ?? new Workspace(device);
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    return `${this.#planned.recordingKey},${this.#workspace.key}`;
  }

  /** Plans a step; not while a run that uses the last plan is under way. Throws ArgumentError naming what does not fit. */
  plan(batch: AttentionBatch, options: PlanOptions = {}): void {
    this.#planned.update(batch, options);
  }

  /** Where absorbed queries may be written, to be given as `qLatent` without being copied: [numRows, numHeads, kvLoraRank]. */
  queryLatents(): HeadsTensor {
    return queryChannels(this.#queryRows(), 0, this.spec.kvLoraRank);
  }

  /**
   * Records the attention of one layer; its output has kvLoraRank channels. The first one of a step may allocate memory for the queries. Throws
   * ShapeError or ArgumentError naming the tensor that does not fit.
   */
  record(recorder: Recorder, args: AbsorbedMlaArgs): AttentionResult {
    if (recorder.device !== this.device) throw new ArgumentError("record: the recorder belongs to another device");
    const { spec } = this;
    const { numHeads, kvLoraRank } = spec;
    const { numRows, numPages } = this.#planned.plan.batch;
    const { ckv, kpe } = locateMlaCache(spec, args.cache, numPages);
    const ckvScale = checkScale("ckvScale", args.ckvScale);
    const kpeScale = checkScale("kpeScale", args.kpeScale);
    if (args.out) checkRowsOfHeads("out", args.out, numRows, numHeads, kvLoraRank);
    if (args.lse) checkLse(args.lse, { ...spec, numQHeads: numHeads }, numRows);
    const sinks = headVector("sinks", args.sinks, { ...spec, numQHeads: numHeads });
    const ropeTable = ropeTablePointer(args.ropeTable, mlaRopeRows(spec), this.#planned.plan.batch);
    const q = this.#assemble(recorder, args, kpeScale / ckvScale);
    const lseShape = spec.returnLse ? [numRows, numHeads] : undefined;
    const result = resultsOf(this.device, "mla latent", args, [numRows, numHeads, kvLoraRank], lseShape);
    const { out, lse } = result;
    try {
      recordAttention(recorder, this.#planned, {
        q: q.pointer,
        qRowStride: q.rowStride,
        kPages: ckv.pointer,
        kStrides: ckv.strides,
        kScales: ckv.scales,
        kScaleStrides: ckv.scaleStrides,
        vPages: kpe.pointer,
        vStrides: kpe.strides,
        out: out.pointer,
        outRowStride: out.rowStride,
        lse: lse?.pointer,
        sinks,
        ropeTable,
        kScale: ckvScale * (args.kScale ?? 1),
        vScale: ckvScale * (args.vScale ?? 1),
      });
    } catch (error) {
      freeResult(this.device, result);
      throw error;
    }
    return result;
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: AbsorbedMlaArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the device memory back. */
  release(): void {
    this.#planned.release();
    if (this.#ownsWorkspace) this.#workspace.release();
  }

  /** Queries in one tensor. A scale of the rope keys alone goes to the queries that meet them. */
  #assemble(recorder: Recorder, { q, qLatent, qPe }: MlaQueries, ropeFactor: number): RowsTensor {
    const { numHeads, kvLoraRank, qkRopeHeadDim } = this.spec;
    const { numRows, queryIndptr, numSeqs } = this.#planned.plan.batch;
    const numTokens = queryIndptr[numSeqs];
    const width = kvLoraRank + qkRopeHeadDim;
    if (q) {
      if (qLatent || qPe) throw new ArgumentError("q must be absent where qLatent or qPe is given");
      const rowStride = checkRowsOfHeads("q", q, numRows, numHeads, width);
      if (ropeFactor === 1 || qkRopeHeadDim === 0) return { ...q, rowStride };
      const part = (first: number, channels: number): HeadsTensor => ({
        type: "f32",
        pointer: q.pointer + first * 4,
        shape: [q.shape[0], numHeads, channels],
        rowStride,
        headStride: width,
      });
      const parts = { qLatent: part(0, kvLoraRank), qPe: part(kvLoraRank, qkRopeHeadDim) };
      return this.#assemble(recorder, parts, ropeFactor);
    }
    if (!qLatent) throw new ArgumentError("q or qLatent must be given");
    const parts = { name: "qLatent", x: qLatent, qPe, ropeFactor, numTokens } as const;
    return recordQueries(recorder, this.#queryRows(), parts);
  }

  /** Where queries are put together. May allocate memory. */
  #queryRows(): QueryRows {
    const { numHeads, kvLoraRank: channels, qkRopeHeadDim: ropeChannels } = this.spec;
    const { numRows } = this.#planned.plan.batch;
    this.#workspace.reserve("queries", numRows * numHeads * (channels + ropeChannels));
    return { pointer: this.#workspace.pointer("queries"), numRows, numHeads, channels, ropeChannels };
  }
}

/** The attention that the kernels run. */
function attentionSpec(spec: AbsorbedMlaSpec): AttentionSpec {
  const { numHeads, kvLoraRank, qkRopeHeadDim, rope } = spec;
  requireInteger("numHeads", numHeads, 1);
  requireInteger("kvLoraRank", kvLoraRank, 1);
  requireInteger("qkRopeHeadDim", qkRopeHeadDim, 0);
  if (rope && qkRopeHeadDim === 0) throw new ArgumentError("rope must be absent for qkRopeHeadDim = 0");
  const { latent, rope: ropeStorage } = mlaStorages(spec);
  const { smScale, causal, slidingWindow, softCap, sinks, returnLse, lseBase, splitSize, pageSize } = spec;
  return {
    headDim: kvLoraRank + qkRopeHeadDim,
    headDimV: kvLoraRank,
    numQHeads: numHeads,
    numKvHeads: 1,
    mla: { ropeDim: qkRopeHeadDim },
    pageSize,
    storage: latent,
    valueStorage: ropeStorage,
    rope: rope && { style: rope.style, dim: qkRopeHeadDim, offset: kvLoraRank, queries: true },
    ...{ smScale, causal, slidingWindow, softCap, sinks, returnLse, lseBase, splitSize },
  };
}

/** Throws ArgumentError unless a factor of stored numbers is finite and positive. */
export function checkScale(name: string, scale = 1): number {
  if (scale > 0 && scale < Infinity) return scale;
  throw new ArgumentError(`${name} must be a finite positive number, got ${scale}`);
}

/** Rows of the cos/sin table that a spec needs; undefined for one without rope. */
export function mlaRopeRows({ qkRopeHeadDim, rope }: Pick<AbsorbedMlaSpec, "qkRopeHeadDim" | "rope">) {
  return rope && { dim: qkRopeHeadDim };
}
