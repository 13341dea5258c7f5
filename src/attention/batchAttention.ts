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
import { ArgumentError, ShapeError } from "../tensor/index.ts";
import { type AttentionResult, allocateResult, freeResult, runRecorded } from "./results.ts";
import {
  checkHeads,
  checkTensor,
  type KvLayout,
  type KvShape,
  type KvTensors,
  locateKv,
  scaleRow,
  storageRow,
} from "./tensors.ts";

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
   * else of the arrays is read. Throws ArgumentError naming what does not fit.
   */
  plan(batch: AttentionBatch, options: PlanOptions = {}): void {
    this.#planned.update(batch, options);
  }

  /** Records the attention of one layer. Throws ShapeError or ArgumentError naming the tensor that does not fit. */
  record(recorder: Recorder, args: BatchAttentionArgs): AttentionResult {
    if (recorder.device !== this.device) throw new ArgumentError("record: the recorder belongs to another device");
    const { numRows } = this.#planned.plan.batch;
    const { spec } = this;
    const { numQHeads, headDim } = spec;
    const located = this.#locate(args);
    const qRowStride = checkHeads("q", args.q, numRows, numQHeads, headDim);
    const outRowStride = args.out && checkHeads("out", args.out, numRows, numQHeads, valueDim(spec));
    if (args.lse) this.#checkLse(args.lse, numRows);
    const head = (name: "alibiSlopes" | "sinks", isUsed: boolean | undefined) => this.#headVector(name, args, isUsed);
    const optional = {
      alibiSlopes: head("alibiSlopes", spec.alibi),
      sinks: head("sinks", spec.sinks),
      ropeTable: this.#ropeTable(args.ropeTable),
      kScale: args.kScale,
      vScale: args.vScale,
    };
    const out = args.out ?? allocateResult(this.device, "attention out", [numRows, numQHeads, valueDim(spec)]);
    const lse = spec.returnLse
      ? (args.lse ?? allocateResult(this.device, "attention lse", [numRows, numQHeads]))
      : undefined;
    const pointers = { q: args.q.pointer, qRowStride, out: out.pointer, outRowStride, lse: lse?.pointer };
    try {
      recordAttention(recorder, this.#planned, { ...located, ...optional, ...pointers });
    } catch (error) {
      freeResult(this.device, { out, lse });
      throw error;
    }
    return { out, lse };
  }

  /** Runs one layer. As `record`; rejects with DeviceError if the device fails. */
  async run(args: BatchAttentionArgs): Promise<AttentionResult> {
    return runRecorded(this.device, (recorder) => this.record(recorder, args));
  }

  /** Gives the plan's device memory back. */
  release(): void {
    this.#planned.release();
  }

  #locate({ cache, scales }: BatchAttentionArgs) {
    const { spec } = this;
    const { layout = "NHD", pageSize, numKvHeads, headDim, storage, valueStorage = storage } = spec;
    const shape = (k: KvShape["k"], v: KvShape["v"]): KvShape => {
      return { layout, pageSize, numKvHeads, numPages: this.#planned.plan.batch.numPages, k, v };
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

  #checkLse(lse: DeviceTensor, numRows: number): void {
    const { returnLse, numQHeads } = this.spec;
    if (!returnLse) throw new ArgumentError("lse must be absent: the spec lacks returnLse");
    if (lse.shape.length !== 2 || lse.shape[0] < numRows) {
      throw new ShapeError(`lse must have shape [at least ${numRows}, ${numQHeads}], got [${lse.shape.join(", ")}]`);
    }
    checkTensor("lse", lse, "f32", [lse.shape[0], numQHeads]);
  }

  #headVector(
    name: "alibiSlopes" | "sinks",
    args: BatchAttentionArgs,
    isUsed: boolean | undefined,
  ): number | undefined {
    const tensor = args[name];
    const word = name === "sinks" ? "sinks" : "alibi";
    if (tensor === undefined) {
      if (isUsed) throw new ArgumentError(`${name} must be given because the spec has ${word}`);
      return undefined;
    }
    if (!isUsed) throw new ArgumentError(`${name} must be absent: the spec lacks ${word}`);
    checkTensor(name, tensor, "f32", [this.spec.numQHeads]);
    return tensor.pointer;
  }

  #ropeTable(table: DeviceTensor | undefined): number | undefined {
    const { rope } = this.spec;
    if (!rope) {
      if (table) throw new ArgumentError("ropeTable must be absent: the spec lacks rope");
      return undefined;
    }
    if (!table) throw new ArgumentError("ropeTable must be given because the spec has rope");
    const numPositions = this.#numPositions();
    if (table.shape.length !== 2 || table.shape[0] < numPositions || table.shape[1] !== rope.dim) {
      throw new ShapeError(
        `ropeTable must have shape [at least ${numPositions}, ${rope.dim}], got [${table.shape.join(", ")}]`,
      );
    }
    checkTensor("ropeTable", table, "f32", table.shape);
    return table.pointer;
  }

  /** One more than the largest absolute position of the batch. */
  #numPositions(): number {
    const { numSeqs, kvLens, positionOffsets } = this.#planned.plan.batch;
    let end = 0;
    for (let s = 0; s < numSeqs; s++) end = Math.max(end, kvLens[s] + (positionOffsets?.[s] ?? 0));
    return end;
  }
}
