/**
 * Multi-head latent attention of a ragged batch, from queries of heads to outputs of heads: each sequence in the form that takes fewer
 * operations. Absorbed (absorbed.ts): queries meet the latents themselves, results go through W_UV afterwards. Rebuilt (rebuilt.ts):
 * latents become keys and values of every head first.
 */
import type { CpuDevice } from "../../devices/index.ts";
import {
  type AttentionBatch,
  absorbThreshold,
  requireInteger,
  validateAttentionBatch,
} from "../../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../../ops/elementwise/index.ts";
import { checkHeads, type HeadsTensor, recordHeadProjection } from "../../ops/headProjection/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { PlanOptions } from "../batchAttention.ts";
import { checkLse } from "../layerTensors.ts";
import { type AttentionResult, freeResult, resultsOf, runRecorded } from "../results.ts";
import { checkHeads as checkRowsOfHeads, checkTensor } from "../tensors.ts";
import { AbsorbedMla, type AbsorbedMlaSpec } from "./absorbed.ts";
import type { MlaCacheTensors } from "./cache.ts";
import { kvBProjRows, type MlaDims, validateMlaDims } from "./dims.ts";
import { RebuiltMla, rowsFrom } from "./rebuilt.ts";
import { batchOf, cutIntoSegments, type MlaSegment, type MlaStepForm } from "./segments.ts";
import { Workspace } from "./workspace.ts";

/** What compiles kernels, how tokens are cached, and how a step is computed. */
export interface BatchMlaSpec
  extends MlaDims,
    Pick<
      AbsorbedMlaSpec,
      "pageSize" | "storage" | "ropeStorage" | "smScale" | "causal" | "sinks" | "returnLse" | "lseBase" | "rope"
    > {
  /** "auto" by default: rebuilt for sequences of at least `absorbThreshold` new tokens. */
  readonly form?: MlaStepForm | "auto";
  /** New tokens from which on a sequence is rebuilt; by default where that begins to take fewer operations for its length. */
  readonly absorbThreshold?: number;
  /** Tokens whose keys and values are held rebuilt at a time, at least; 1024 by default. Longer contexts are done in chunks. */
  readonly rebuiltTokens?: number;
}

/** The tensors of one layer. */
export interface BatchMlaArgs {
  /** [rows, numHeads, qkNopeHeadDim] f32 */
  readonly qNope: HeadsTensor;
  /** [rows, numHeads, qkRopeHeadDim] f32; absent if that is 0. */
  readonly qPe?: HeadsTensor;
  readonly cache: MlaCacheTensors;
  /** [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank] f32: for each head in turn its rows of W_UK, then those of W_UV. */
  readonly kvBProj: DeviceTensor;
  /** [numRows, numHeads, vHeadDim] f32; allocated if absent. */
  readonly out?: RowsTensor;
  /** [numRows, numHeads, kvLoraRank] f32: takes the latent results, for a spec of form "absorbed" only. */
  readonly z?: RowsTensor;
  /** [numRows, numHeads] f32; allocated if absent and the spec has returnLse. */
  readonly lse?: DeviceTensor;
  /** [numHeads] f32, for a spec with sinks. */
  readonly sinks?: DeviceTensor;
  /** [positions, qkRopeHeadDim] f32, rows as RopeTable writes them, for a spec with rope. */
  readonly ropeTable?: DeviceTensor;
  /** What cached latents and rope keys have been divided by; 1 by default. */
  readonly ckvScale?: number;
  readonly kpeScale?: number;
}

/** Latent attention of one spec on one device: `plan` once a step, `record` or `run` once a layer. Memory only grows, until `release`. */
export class BatchMLAPagedAttention {
  readonly device: CpuDevice;
  readonly spec: BatchMlaSpec;
  readonly #workspace: Workspace;
  readonly #absorbed: AbsorbedMla[] = [];
  readonly #rebuilt: RebuiltMla[] = [];
  #step: { readonly batch: AttentionBatch; readonly segments: readonly MlaSegment[] } | undefined;

  /** Throws ArgumentError for a spec that is out of range. */
  constructor(device: CpuDevice, spec: BatchMlaSpec) {
    validateMlaDims(spec);
    if (spec.absorbThreshold !== undefined) requireInteger("absorbThreshold", spec.absorbThreshold, 0);
    if (spec.form !== undefined && !["auto", "absorbed", "rebuilt"].includes(spec.form)) {
      throw new ArgumentError(`form must be auto, absorbed or rebuilt, got ${spec.form}`);
    }
    this.device = device;
    this.spec = spec;
    this.#workspace = new Workspace(device);
    // So that a spec that no kernel can run is refused here.
    if (spec.form !== "rebuilt") this.#absorbedOf(0);
    if (spec.form !== "absorbed") this.#rebuiltOf(0);
  }

  /** What `plan` decided. */
  get segments(): readonly MlaSegment[] {
    return this.#step?.segments ?? [];
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    const keys = this.segments.map((segment) => {
      const { form, firstRow, endRow } = segment;
      return `${form} ${firstRow} ${endRow} ${this.#of(segment).recordingKey}`;
    });
    return [...keys, this.#workspace.key].join(";");
  }

  /**
   * Plans a step; not while a run that uses the last plan is under way. Neighbouring sequences of one form are computed together: a batch
   * is cut least when those with few new tokens come first. Throws ArgumentError naming what does not fit.
   */
  plan(batch: AttentionBatch, options: PlanOptions = {}): void {
    const { numHeads, kvLoraRank, qkRopeHeadDim } = this.spec;
    validateAttentionBatch({ pageSize: this.spec.pageSize }, batch, options.checkPages);
    const segments = cutIntoSegments(batch, (s) => this.#formOf(batch, s));
    let absorbedRows = 0;
    for (const segment of segments) {
      const part = batchOf(batch, segment);
      if (segment.form === "rebuilt") this.#rebuiltOf(segment.index).plan(part);
      else {
        // Pages have been checked for all segments at once, or must not be.
        this.#absorbedOf(segment.index).plan(part, { ...options, checkPages: false });
        absorbedRows = Math.max(absorbedRows, segment.endRow - segment.firstRow);
      }
    }
    this.#workspace.reserve("queries", absorbedRows * numHeads * (kvLoraRank + qkRopeHeadDim));
    this.#workspace.reserve("latent results", absorbedRows * numHeads * kvLoraRank);
    this.#workspace.reserve("lse", batch.numRows * numHeads);
    this.#step = { batch, segments };
  }

  /** Records the attention of one layer; its output has vHeadDim channels. Throws ShapeError or ArgumentError naming the tensor that does not fit. */
  record(recorder: Recorder, args: BatchMlaArgs): AttentionResult {
    if (recorder.device !== this.device) throw new ArgumentError("record: the recorder belongs to another device");
    if (!this.#step) throw new ArgumentError("record: plan was never called");
    const { spec } = this;
    const { numHeads, vHeadDim, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim } = spec;
    const { numRows, numSeqs, queryIndptr } = this.#step.batch;
    const numTokens = queryIndptr[numSeqs];
    checkTensor("kvBProj", args.kvBProj, "f32", [kvBProjRows(spec), kvLoraRank]);
    checkHeads("qNope", args.qNope, numTokens, numHeads, qkNopeHeadDim);
    if (args.qPe) checkHeads("qPe", args.qPe, numTokens, numHeads, qkRopeHeadDim);
    if (args.out) checkRowsOfHeads("out", args.out, numRows, numHeads, vHeadDim);
    if (args.lse) checkLse(args.lse, { ...spec, numQHeads: numHeads }, numRows);
    if (args.z) {
      if (spec.form !== "absorbed")
        throw new ArgumentError(`z needs a spec of form absorbed, got ${spec.form ?? "auto"}`);
      checkRowsOfHeads("z", args.z, numRows, numHeads, kvLoraRank);
    }
    const lseShape = spec.returnLse ? [numRows, numHeads] : undefined;
    const result = resultsOf(this.device, "mla", args, [numRows, numHeads, vHeadDim], lseShape);
    try {
      for (const segment of this.segments) this.#recordSegment(recorder, args, segment, result);
    } catch (error) {
      freeResult(this.device, result);
      throw error;
    }
    return result;
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BatchMlaArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the device memory back. */
  release(): void {
    for (const part of [...this.#absorbed, ...this.#rebuilt]) part.release();
    this.#workspace.release();
  }

  #formOf({ queryIndptr, kvLens }: AttentionBatch, sequence: number): MlaStepForm {
    const { form = "auto" } = this.spec;
    if (form !== "auto") return form;
    const threshold = this.spec.absorbThreshold ?? mlaAbsorbThreshold(this.spec, kvLens[sequence]);
    return queryIndptr[sequence + 1] - queryIndptr[sequence] < threshold ? "absorbed" : "rebuilt";
  }

  #recordSegment(recorder: Recorder, args: BatchMlaArgs, segment: MlaSegment, { out, lse }: AttentionResult): void {
    const { cache, kvBProj, sinks, ropeTable, ckvScale, kpeScale } = args;
    const shared = { cache, sinks, ropeTable, ckvScale, kpeScale };
    const { firstRow, index } = segment;
    const { numHeads, qkNopeHeadDim, vHeadDim, kvLoraRank: columns } = this.spec;
    const qNope = headsFrom(args.qNope, firstRow);
    const qPe = args.qPe && headsFrom(args.qPe, firstRow);
    const o = rowsFrom(out, firstRow);
    const lseRows = rowsFrom(lse ?? this.#workspace.tensor("lse", [this.#batch.numRows, numHeads]), firstRow);
    if (segment.form === "rebuilt") {
      this.#rebuiltOf(index).record(recorder, { ...shared, qNope, qPe, kvBProj, o, lse: lseRows });
      return;
    }
    const absorbed = this.#absorbedOf(index);
    const numRows = segment.endRow - firstRow;
    const numTokens = Math.min(segment.endRow, this.#batch.queryIndptr[this.#batch.numSeqs]) - firstRow;
    const headRows = qkNopeHeadDim + vHeadDim;
    const qLatent = absorbed.queryLatents();
    const absorb = { kind: "absorb", rows: qkNopeHeadDim, columns } as const;
    const queries = { x: qNope, weight: kvBProj, headRows, out: qLatent, numTokens };
    recordHeadProjection(recorder, absorb, queries, { overlap: qPe !== undefined });
    const z = args.z
      ? rowsFrom(args.z, firstRow)
      : { ...this.#workspace.tensor("latent results", [numRows, numHeads, columns]), rowStride: numHeads * columns };
    absorbed.record(recorder, { ...shared, qLatent, qPe, out: z, lse: lse && lseRows });
    const expand = { kind: "expand", rows: vHeadDim, columns } as const;
    recordHeadProjection(recorder, expand, {
      x: z,
      weight: kvBProj,
      firstRow: qkNopeHeadDim,
      headRows,
      out: o,
      numTokens: numRows,
    });
  }

  #of({ form, index }: MlaSegment): AbsorbedMla | RebuiltMla {
    return form === "absorbed" ? this.#absorbedOf(index) : this.#rebuiltOf(index);
  }

  #absorbedOf(index: number): AbsorbedMla {
    this.#absorbed[index] ??= new AbsorbedMla(this.device, this.spec, this.#workspace);
    return this.#absorbed[index];
  }

  #rebuiltOf(index: number): RebuiltMla {
    const spec = { ...this.spec, rebuiltTokens: this.spec.rebuiltTokens ?? 1024 };
    this.#rebuilt[index] ??= new RebuiltMla(this.device, spec, this.#workspace);
    return this.#rebuilt[index];
  }

  get #batch(): AttentionBatch {
    if (!this.#step) throw new ArgumentError("record: plan was never called");
    return this.#step.batch;
  }
}

/**
 * The number of new tokens from which on rebuilding keys and values takes fewer operations than absorbing, for a sequence of kvLen tokens.
 * Projections that both forms share do not matter.
 */
export function mlaAbsorbThreshold(dims: MlaDims, kvLen: number): number {
  return absorbThreshold({ ...dims, hiddenSize: 1 }, kvLen);
}

/** Heads of the rows from one on. */
function headsFrom(tensor: HeadsTensor, row: number): HeadsTensor {
  const [numRows, numHeads, channels] = tensor.shape;
  const { headStride = channels } = tensor;
  const { rowStride = headStride === 0 ? channels : numHeads * headStride } = tensor;
  return {
    ...tensor,
    pointer: tensor.pointer + row * rowStride * 4,
    shape: [numRows - row, numHeads, channels],
    rowStride,
    headStride,
  };
}
