/**
 * Attention with keys and values of every head rebuilt from the latents: what a step of many new tokens does, because it multiplies fewer
 * numbers than absorbed queries would. Long contexts are rebuilt in chunks, and the results merged by their LSE, as vLLM's chunked prefill
 * does; how they are cut is in rebuiltParts.ts, how they are rebuilt in rebuiltKeys.ts.
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
import { type MergeStatesSpec, recordApplySinks, recordMergeStateInPlace } from "../../ops/mergeStates/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { ArgumentError } from "../../tensor/index.ts";
import { headVector, ropeTablePointer } from "../layerTensors.ts";
import { type AbsorbedMlaSpec, checkScale, mlaRopeRows } from "./absorbed.ts";
import { locateMlaCache, type MlaCacheTensors } from "./cache.ts";
import { type MlaDims, validateMlaDims } from "./dims.ts";
import { queryChannels, recordQueries } from "./queries.ts";
import { recordRebuiltKeys, recordRotation } from "./rebuiltKeys.ts";
import { cutIntoParts, type RebuiltParts } from "./rebuiltParts.ts";
import { Workspace } from "./workspace.ts";

/** What compiles a kernel, and how tokens are cached. */
export interface RebuiltMlaSpec
  extends MlaDims,
    Pick<
      AbsorbedMlaSpec,
      "pageSize" | "storage" | "ropeStorage" | "smScale" | "causal" | "sinks" | "lseBase" | "rope"
    > {
  /** Tokens whose keys and values are held rebuilt at a time. */
  readonly rebuiltTokens: number;
}

/** The tensors of one layer; all are needed but those that the spec says are not. */
export interface RebuiltMlaArgs {
  /** [rows, numHeads, qkNopeHeadDim] f32 */
  readonly qNope: HeadsTensor;
  /** [rows, numHeads, qkRopeHeadDim] f32; absent if that is 0. */
  readonly qPe?: HeadsTensor;
  readonly cache: MlaCacheTensors;
  /** [numHeads * (qkNopeHeadDim + vHeadDim), kvLoraRank] f32 */
  readonly kvBProj: DeviceTensor;
  /** [numRows, numHeads, vHeadDim] f32 */
  readonly o: RowsTensor;
  /** [numRows, numHeads] f32 */
  readonly lse: RowsTensor;
  readonly sinks?: DeviceTensor;
  readonly ropeTable?: DeviceTensor;
  readonly ckvScale?: number;
  readonly kpeScale?: number;
}

/** Rebuilt attention of one spec on one device: `plan` once a step, `record` once a layer. */
export class RebuiltMla {
  readonly device: CpuDevice;
  readonly spec: RebuiltMlaSpec;
  readonly #workspace: Workspace;
  readonly #lists: Workspace;
  readonly #plans: { readonly own: CpuAttentionPlan[]; readonly context: CpuAttentionPlan[] } = {
    own: [],
    context: [],
  };
  #step: { readonly batch: AttentionBatch; readonly parts: RebuiltParts } | undefined;

  /** Throws ArgumentError for a spec that is out of range. The workspace is the caller's to release. */
  constructor(device: CpuDevice, spec: RebuiltMlaSpec, workspace: Workspace) {
    validateMlaDims(spec);
    requireInteger("rebuiltTokens", spec.rebuiltTokens, 1);
    this.device = device;
    this.spec = spec;
    this.#workspace = workspace;
    this.#lists = new Workspace(device);
    this.#plans.own.push(new CpuAttentionPlan(device, attentionSpec(spec, "own")));
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it. */
  get recordingKey(): string {
    const { own = [], context = [] } = this.#step?.parts ?? {};
    const parts = [...own, ...context].map(
      ({ firstRow, firstToken, numTokens }) => `${firstRow},${firstToken},${numTokens}`,
    );
    const plans = [...this.#plans.own.slice(0, own.length), ...this.#plans.context.slice(0, context.length)];
    return [...parts, ...plans.map((plan) => plan.recordingKey), this.#lists.key, this.#workspace.key].join(";");
  }

  /** Plans a step whose lengths and pages have been checked. Not while a run that uses the last plan is under way. */
  plan(batch: AttentionBatch): void {
    const { numHeads, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim, vHeadDim, pageSize, rebuiltTokens } = this.spec;
    const parts = cutIntoParts(batch, pageSize, rebuiltTokens);
    for (const kind of ["own", "context"] as const) {
      for (const [index, part] of parts[kind].entries()) {
        this.#plans[kind][index] ??= new CpuAttentionPlan(this.device, attentionSpec(this.spec, kind));
        this.#plans[kind][index].update(part.batch);
      }
    }
    this.#lists.write("slots", parts.slots);
    this.#lists.write("positions", parts.positions);
    this.#lists.write("query positions", queryPositions(batch));
    const headDim = qkNopeHeadDim + qkRopeHeadDim;
    this.#workspace.reserve("queries", batch.numRows * numHeads * headDim);
    this.#workspace.reserve("latents", parts.maxTokens * kvLoraRank);
    this.#workspace.reserve("rope keys", parts.maxTokens * qkRopeHeadDim);
    this.#workspace.reserve("keys", parts.maxTokens * numHeads * headDim);
    this.#workspace.reserve("values", parts.maxTokens * numHeads * vHeadDim);
    this.#workspace.reserve("partial out", parts.maxContextRows * numHeads * vHeadDim);
    this.#workspace.reserve("partial lse", parts.maxContextRows * numHeads);
    this.#step = { batch, parts };
  }

  /** Records the attention of one layer. Throws ShapeError or ArgumentError naming the tensor that does not fit. */
  record(recorder: Recorder, args: RebuiltMlaArgs): void {
    if (!this.#step) throw new ArgumentError("record: plan was never called");
    const { batch, parts } = this.#step;
    const { spec } = this;
    const { numHeads, vHeadDim, lseBase } = spec;
    const cache = locateMlaCache(spec, args.cache, batch.numPages);
    const ckvScale = checkScale("ckvScale", args.ckvScale);
    const kpeScale = checkScale("kpeScale", args.kpeScale);
    const ropeTable = ropeTablePointer(args.ropeTable, mlaRopeRows(spec), batch);
    headVector("sinks", args.sinks, { ...spec, numQHeads: numHeads });
    const q = this.#assemble(recorder, args, { ckvScale, kpeScale }, ropeTable);
    const qRow = numHeads * (spec.qkNopeHeadDim + spec.qkRopeHeadDim);
    const merge: MergeStatesSpec = { numHeads, headDim: vHeadDim, lseBase };
    for (const kind of ["own", "context"] as const) {
      for (const [index, part] of parts[kind].entries()) {
        const slots = this.#lists.pointer("slots") + part.firstToken * 4;
        const positions = this.#lists.pointer("positions") + part.firstToken * 4;
        const tokens = { numTokens: part.numTokens, slots, positions };
        recordRebuiltKeys(recorder, this.spec, this.#workspace, { ...cache, kvBProj: args.kvBProj, ropeTable }, tokens);
        const rows = part.batch.numRows;
        const [o, lse] = [rowsFrom(args.o, part.firstRow), rowsFrom(args.lse, part.firstRow)];
        const partialOut = this.#workspace.tensor("partial out", [rows, numHeads, vHeadDim]);
        const partialLse = this.#workspace.tensor("partial lse", [rows, numHeads]);
        recordAttention(recorder, this.#plans[kind][index], {
          q: q.pointer + part.firstRow * qRow * 4,
          kPages: this.#workspace.pointer("keys"),
          vPages: this.#workspace.pointer("values"),
          out: kind === "own" ? o.pointer : partialOut.pointer,
          outRowStride: kind === "own" ? o.rowStride : undefined,
          lse: kind === "own" ? lse.pointer : partialLse.pointer,
          vScale: ckvScale,
        });
        if (kind === "own") continue;
        const states = { v: o, s: lse, vOther: partialOut, sOther: partialLse, numRows: rows };
        recordMergeStateInPlace(recorder, merge, states);
      }
    }
    if (args.sinks) {
      recordApplySinks(recorder, merge, { out: args.o, lse: args.lse, sinks: args.sinks, numRows: batch.numRows });
    }
  }

  /** Gives the plan's device memory back; the workspace stays. */
  release(): void {
    for (const plan of [...this.#plans.own, ...this.#plans.context]) plan.release();
    this.#lists.release();
  }

  /** Both parts of the queries side by side, rotated if the cache is not; a scale of latents and one of rope keys go to what meets them. */
  #assemble(
    recorder: Recorder,
    { qNope, qPe }: RebuiltMlaArgs,
    scales: { readonly ckvScale: number; readonly kpeScale: number },
    ropeTable: number | undefined,
  ): RowsTensor {
    const { numHeads, qkNopeHeadDim: channels, qkRopeHeadDim: ropeChannels } = this.spec;
    const { numRows, numSeqs, queryIndptr } = this.#batch;
    const numTokens = queryIndptr[numSeqs];
    const rows = { pointer: this.#workspace.pointer("queries"), numRows, numHeads, channels, ropeChannels };
    const parts = { name: "qNope", x: qNope, factor: scales.ckvScale, qPe, ropeFactor: scales.kpeScale } as const;
    const queries = recordQueries(recorder, rows, { ...parts, numTokens });
    if (ropeTable !== undefined) {
      recordRotation(recorder, this.spec, {
        x: queryChannels(rows, channels, ropeChannels),
        positions: this.#lists.pointer("query positions"),
        table: ropeTable,
        numTokens,
      });
    }
    return queries;
  }

  get #batch(): AttentionBatch {
    if (!this.#step) throw new ArgumentError("record: plan was never called");
    return this.#step.batch;
  }
}

/** Rows of a tensor from one on. */
export function rowsFrom(tensor: RowsTensor, row: number): RowsTensor & { readonly rowStride: number } {
  const [numRows, ...inner] = tensor.shape;
  const { rowStride = inner.reduce((product, extent) => product * extent, 1) } = tensor;
  return { ...tensor, pointer: tensor.pointer + row * rowStride * 4, shape: [numRows - row, ...inner], rowStride };
}

/** The attention over the new tokens of sequences, or over a part of what is before them. */
function attentionSpec(spec: RebuiltMlaSpec, kind: "own" | "context"): AttentionSpec {
  const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim, smScale, lseBase } = spec;
  return {
    headDim: qkNopeHeadDim + qkRopeHeadDim,
    headDimV: vHeadDim,
    numQHeads: numHeads,
    numKvHeads: numHeads,
    storage: "f32",
    causal: spec.causal && kind === "own",
    smScale,
    lseBase,
    returnLse: true,
  };
}

/** Absolute position of every query of the batch. */
function queryPositions({ numSeqs, queryIndptr, kvLens, positionOffsets }: AttentionBatch): Int32Array {
  const positions = new Int32Array(queryIndptr[numSeqs]);
  for (let s = 0; s < numSeqs; s++) {
    const first = (positionOffsets?.[s] ?? 0) + kvLens[s] - (queryIndptr[s + 1] - queryIndptr[s]);
    for (let row = queryIndptr[s]; row < queryIndptr[s + 1]; row++) {
      // Queries before key 0 see nothing; their position only has to be in the table.
      positions[row] = Math.max(0, first + row - queryIndptr[s]);
    }
  }
  return positions;
}
