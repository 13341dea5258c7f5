/**
 * Attention of a ragged batch over tensors: `plan` once a step, `run` or `record` once a layer. Checks tensors and finds their strides;
 * the work list is the plan's (src/ops/attention), and books about pages are kept in src/cache. Vocabulary: FlashInfer (arXiv 2501.01005).
 */
import type { CpuDevice } from "../devices/index.ts";
import {
  type AttentionBatch,
  type AttentionSpec,
  CpuAttentionPlan,
  recordAttention,
  valueDim,
} from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import type { Recorder } from "../ops/recorder.ts";
import { ArgumentError } from "../tensor/index.ts";
import { checkLse, headVector, ropeTablePointer } from "./layerTensors.ts";
import { type AttentionResult, freeResult, resultsOf, runRecorded } from "./results.ts";
import { checkHeads, type KvLayout, type KvShape, type KvTensors, locateKv, scaleRow, storageRow } from "./tensors.ts";

/** What compiles a kernel, and how pages lie. Latent attention (`mla`, `latent`) has classes of its own. */
export interface BatchAttentionSpec extends Omit<AttentionSpec, "mla" | "latent"> {
  /** "NHD" by default. */
  readonly layout?: KvLayout;
}

/** The tensors of one layer. Shapes with numRows and numPages of the batch are least sizes. */
export interface BatchAttentionArgs {
  /** [numRows, numQHeads, headDim] f32 */
  readonly q: RowsTensor;
  /** Keys and values, of the spec's storage. */
  readonly cache: KvTensors;
  /** Scales of every row, for the storages that have some: shaped as `cache` with the scales of a row in place of its channels. */
  readonly scales?: KvTensors;
  /** [numRows, numQHeads, headDimV] f32; allocated if absent. */
  readonly out?: RowsTensor;
  /** [numRows, numQHeads] f32; allocated if absent and the spec has returnLse. */
  readonly lse?: DeviceTensor;
  /** Factor on the logits, for keys stored divided by it; 1 by default. */
  readonly kScale?: number;
  /** Factor on the output, for values stored divided by it; 1 by default. */
  readonly vScale?: number;
  /** [numQHeads] f32, for a spec with alibi. */
  readonly alibiSlopes?: DeviceTensor;
  /** [numQHeads] f32, for a spec with sinks. */
  readonly sinks?: DeviceTensor;
  /** [positions, rope.dim] f32, rows as RopeTable writes them, for a spec with rope. */
  readonly ropeTable?: DeviceTensor;
}

/** Which checks of a plan may be left out. */
export interface PlanOptions {
  /** Look at every page id that belongs to a sequence. True by default; false is for callers who know them to be right. */
  readonly checkPages?: boolean;
}

/** What was planned. Throws ArgumentError if nothing was: kernels would take their work list from address 0. */
export function requirePlan<Plan>(plan: Plan | undefined): Plan {
  if (plan === undefined) throw new ArgumentError("plan must be called before the attention is recorded, and succeed");
  return plan;
}

/**
 * Attention of one spec on one device. `plan` reads the lengths of a step, then any number of layers run on them. Sizes, lengths and
 * pages may change from step to step without a compilation; memory only grows, until `release`.
 */
export class BatchAttention {
  readonly device: CpuDevice;
  readonly spec: BatchAttentionSpec;
  readonly #planned: CpuAttentionPlan;

  /** Compiles the kernels. Throws ArgumentError for a spec that is out of range or that no kernel can run. */
  constructor(device: CpuDevice, spec: BatchAttentionSpec) {
    const { mla, latent }: AttentionSpec = spec; // as plain JavaScript could bring them
    if (mla || latent) {
      throw new ArgumentError(`${mla ? "mla" : "latent"} is not for BatchAttention: it takes keys and values of heads`);
    }
    const { layout = "NHD", ...kernelSpec } = spec;
    if (layout !== "NHD" && layout !== "HND") throw new ArgumentError(`layout must be NHD or HND, got ${layout}`);
    this.device = device;
    this.spec = spec;
    this.#planned = new CpuAttentionPlan(device, kernelSpec);
  }

  /** Changes when commands recorded before the last `plan` cannot be run after it; see CpuAttentionPlan. */
  get recordingKey(): string {
    return this.#planned.recordingKey;
  }

  /**
   * Plans a step; not while a run that uses the last plan is under way. Lengths are checked for the first numSeqs sequences, nothing
   * else of the arrays is read. Throws ArgumentError naming what does not fit, and then nothing is planned.
   */
  plan(batch: AttentionBatch, options: PlanOptions = {}): void {
    this.#planned.update(batch, options);
  }

  /**
   * Records the attention of one layer. Throws ShapeError or ArgumentError naming the tensor that does not fit, and ArgumentError if nothing
   * is planned.
   */
  record(recorder: Recorder, args: BatchAttentionArgs): AttentionResult {
    if (recorder.device !== this.device) throw new ArgumentError("record: the recorder belongs to another device");
    const batch = requirePlan(this.#planned.isReady ? this.#planned.plan.batch : undefined);
    const { numRows } = batch;
    const { spec } = this;
    const { numQHeads, headDim } = spec;
    const located = this.#locate(args, batch.numPages);
    const qRowStride = checkHeads("q", args.q, numRows, numQHeads, headDim);
    const outRowStride = args.out && checkHeads("out", args.out, numRows, numQHeads, valueDim(spec));
    if (args.lse) checkLse(args.lse, spec, numRows);
    const optional = {
      alibiSlopes: headVector("alibiSlopes", args.alibiSlopes, spec),
      sinks: headVector("sinks", args.sinks, spec),
      ropeTable: ropeTablePointer(args.ropeTable, spec.rope, batch),
      kScale: args.kScale,
      vScale: args.vScale,
    };
    const lseShape = spec.returnLse ? [numRows, numQHeads] : undefined;
    const result = resultsOf(this.device, "attention", args, [numRows, numQHeads, valueDim(spec)], lseShape);
    const pointers = { q: args.q.pointer, qRowStride, out: result.out.pointer, outRowStride, lse: result.lse?.pointer };
    try {
      recordAttention(recorder, this.#planned, { ...located, ...optional, ...pointers });
    } catch (error) {
      freeResult(this.device, result);
      throw error;
    }
    return result;
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BatchAttentionArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the plan's device memory back. Another plan may follow. */
  release(): void {
    this.#planned.release();
  }

  #locate({ cache, scales }: BatchAttentionArgs, numPages: number) {
    const { spec } = this;
    const { layout = "NHD", pageSize, numKvHeads, headDim, storage, valueStorage = storage } = spec;
    const shape = (k: KvShape["k"], v: KvShape["v"]): KvShape => {
      return { layout, pageSize, numKvHeads, numPages, k, v };
    };
    const rows = locateKv(
      "cache",
      cache,
      shape(storageRow(storage, headDim), storageRow(valueStorage, valueDim(spec))),
    );
    const pages = {
      kPages: rows.k.pointer,
      vPages: rows.v.pointer,
      kStrides: rows.k.strides,
      vStrides: rows.v.strides,
    };
    const [kScales, vScales] = [scaleRow(storage, headDim), scaleRow(valueStorage, valueDim(spec))];
    if (kScales.elements === 0 && vScales.elements === 0) {
      if (scales) throw new ArgumentError(`scales must be absent: storage ${JSON.stringify(storage)} has none`);
      return pages;
    }
    if (!scales) throw new ArgumentError(`scales must be given: storage ${JSON.stringify(storage)} has scales of rows`);
    const found = locateKv("scales", scales, shape(kScales, vScales));
    return {
      ...pages,
      kScales: found.k.pointer,
      vScales: found.v.pointer,
      kScaleStrides: found.k.strides,
      vScaleStrides: found.v.strides,
    };
  }
}
