/**
 * Attention on the CPU device: the plan of a step with its device memory, and the function that records a layer's call. The kernels are in
 * cpu.ts, what they compute in contract.ts and reference.ts.
 */
import type { CpuDevice, DeviceBuffer, DeviceKernel } from "../../devices/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { Recorder } from "../recorder.ts";
import type { AttentionBatch } from "./batch.ts";
import { type AttentionSpec, valueDim } from "./contract.ts";
import { attentionKernel, attentionMergeKernel } from "./cpu.ts";
import { AttentionPlan, tasksPerItem } from "./plan.ts";
import type { SourceParams } from "./sourceParams.ts";
import { nhdStrides, type PageStorage, type PageStrides, rowElements, rowScales, storageBytes } from "./storage.ts";
import { type OutputParams, partialRowBytes, partialStateBytes } from "./tile.ts";

type PlanBuffer = "items" | "merges" | "sequences" | "block tables" | "masks" | "partial sums" | "partial states";

/**
 * A plan and its device memory: work list, block tables, partial results. Update it once a step, while no commands that use it run;
 * record it for every layer of the same spec. Memory only grows, until `release`.
 */
export class CpuAttentionPlan {
  readonly device: CpuDevice;
  readonly plan: AttentionPlan;
  readonly kernel: DeviceKernel<keyof typeof attentionKernel.params>;
  readonly mergeKernel: DeviceKernel<keyof typeof attentionMergeKernel.params>;
  readonly #buffers = new Map<string, DeviceBuffer>();
  #isReady = false;

  /**
   * Compiles the kernels of the spec. Throws ArgumentError for one that no kernel can run.
   *
   * @param threads How many workers the work list should keep busy; the result does not depend on it.
   */
  constructor(device: CpuDevice, spec: AttentionSpec, threads = device.threads) {
    this.device = device;
    this.plan = new AttentionPlan(spec, threads);
    this.kernel = device.compile(attentionKernel, spec);
    this.mergeKernel = device.compile(attentionMergeKernel, spec);
  }

  get spec(): AttentionSpec {
    return this.plan.spec;
  }

  /**
   * Plans a step and copies its work list, block tables and masks. Throws ArgumentError for lengths or pages that do not fit together;
   * `checkPages: false` leaves the page ids unread.
   */
  update(batch: AttentionBatch, options: { readonly checkPages?: boolean } = {}): void {
    this.#isReady = false;
    this.plan.update(batch, options);
    const { numSeqs, blockTables, pageIndptr, maxPages } = batch;
    this.#write("items", this.plan.items);
    this.#write("merges", this.plan.merges);
    this.#write("sequences", this.plan.sequences);
    this.#write("block tables", blockTables.subarray(0, pageIndptr ? pageIndptr[numSeqs] : numSeqs * maxPages));
    if (this.spec.customMask && batch.customMask) this.#write("masks", batch.customMask.bits);
    this.#reserve("partial sums", this.plan.numPartialRows * partialRowBytes(this.spec));
    this.#reserve("partial states", this.plan.numPartialRows * partialStateBytes);
    this.#isReady = true;
  }

  /** Whether the device has the plan: not before the first `update`, after one that failed, or after `release`. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** Address of one of the plan's buffers; 0 where the plan needs none. */
  pointer(name: PlanBuffer): number {
    return this.#buffers.get(name)?.pointer ?? 0;
  }

  /**
   * Changes whenever a call recorded before `update` would differ from one recorded after: equal keys let a recording be run again. The rows
   * are in it for those who record launches over them beside the attention.
   */
  get recordingKey(): string {
    const { numItems, numMerges, batch } = this.plan;
    const { numRows, numSeqs, queryIndptr, recent } = batch;
    const pointers = [...this.#buffers.values()].map(({ pointer }) => pointer);
    return [numItems, numMerges, numRows, queryIndptr[numSeqs], recent?.capacity ?? 0, ...pointers].join();
  }

  /** Gives the device memory back. */
  release(): void {
    this.#isReady = false;
    for (const buffer of this.#buffers.values()) this.device.free(buffer);
    this.#buffers.clear();
  }

  #write(name: PlanBuffer, values: Int32Array | Uint8Array): void {
    if (values.length === 0) return;
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    this.device.u8(this.#reserve(name, values.byteLength)).set(bytes);
  }

  #reserve(name: PlanBuffer, numBytes: number): DeviceBuffer {
    const old = this.#buffers.get(name);
    if (old && old.numBytes >= numBytes) return old;
    if (old) this.device.free(old);
    this.#buffers.delete(name); // should there be no room for a larger one
    const buffer = this.device.allocate(Math.max(numBytes, 2 * (old?.numBytes ?? 0), 64), `attention ${name}`);
    this.#buffers.set(name, buffer);
    return buffer;
  }
}

/** Where a call's latents differ from plain keys and values: device addresses. */
export interface LatentArgs {
  /** `LatentLayout.table`. */
  readonly table: number;
  /** U_k, `LatentLayout.upElements` f32; needed for rebuilt keys. */
  readonly up?: number;
  /** [numKvHeads, headDim] f32; needed if the spec has latent.bias. */
  readonly bias?: number;
  /** [windows, capacity, all latents of a token] of the type latent.recent; needed if the spec has it. */
  readonly recentK?: number;
  readonly recentV?: number;
  /** Elements of all key and of all value latents of a token in the recent windows: sums of the ranks. */
  readonly recentRowK?: number;
  readonly recentRowV?: number;
}

/** Device addresses. All rows of q and out are f32. */
export interface AttentionArgs {
  /** [numRows, numQHeads, headDim] */
  readonly q: number;
  readonly kPages: number;
  /** With mla: the rope parts of the keys. */
  readonly vPages: number;
  /** [numRows, numQHeads, headDimV]; may be q itself only if the rows have the same length and stride. */
  readonly out: number;
  /** [numRows, numQHeads]; needed if the spec has returnLse. */
  readonly lse?: number;
  /** Elements between the rows of q; numQHeads * headDim by default. */
  readonly qRowStride?: number;
  /** Elements between the rows of out; numQHeads * headDimV by default, `LatentLayout.outRow` for latents. */
  readonly outRowStride?: number;
  /** Dense pages [page][slot][kv head][channel] by default; needed for latents, of which `LatentLayout` says the rows. */
  readonly kStrides?: PageStrides;
  readonly vStrides?: PageStrides;
  /** Scales of rows: for the storages that have some. */
  readonly kScales?: number;
  readonly vScales?: number;
  /** Distances in f32 elements; those of pages whose rows are `rowScales` long by default. */
  readonly kScaleStrides?: PageStrides;
  readonly vScaleStrides?: PageStrides;
  /** [numQHeads] f32; needed if the spec has alibi. */
  readonly alibiSlopes?: number;
  /** [numQHeads] f32, in the unit of the logits; needed if the spec has sinks. */
  readonly sinks?: number;
  /** cos and sin of every absolute position that occurs, as RopeTable lays them out; needed if the spec has rope. */
  readonly ropeTable?: number;
  /** Needed if the spec has latent. */
  readonly latent?: LatentArgs;
  /** Factor on the logits, for keys stored divided by it; 1 by default. */
  readonly kScale?: number;
  /** Factor on the output, for values stored divided by it; 1 by default. */
  readonly vScale?: number;
}

/** Records attention of the planned batch over one layer's pages. Throws ArgumentError naming the argument that does not fit. */
export function recordAttention({ commands }: Recorder, planned: CpuAttentionPlan, args: AttentionArgs): void {
  if (!planned.isReady) throw new ArgumentError("plan must be called before the attention is recorded, and succeed");
  const { plan, spec } = planned;
  const tasks = tasksPerItem(spec);
  const qRow = spec.numQHeads * spec.headDim;
  const { qRowStride = qRow } = args;
  requireStride("qRowStride", qRowStride, qRow);
  const output = outputArgs(planned, args);
  commands.launch(
    planned.kernel,
    {
      ...output,
      ...sourceArgs(plan, args),
      items: planned.pointer("items"),
      sequences: planned.pointer("sequences"),
      blockTables: planned.pointer("block tables"),
      masks: planned.pointer("masks"),
      q: args.q,
      qRowBytes: qRowStride * 4,
      kScale: args.kScale ?? 1,
      alibiSlopes: spec.alibi ? needed("alibiSlopes", args.alibiSlopes, "alibi") : 0,
    },
    plan.numItems * tasks,
    { grain: 1 },
  );
  const merges = planned.pointer("merges");
  commands.launch(planned.mergeKernel, { ...output, merges }, plan.numMerges * tasks, { grain: 1 });
}

function outputArgs(planned: CpuAttentionPlan, args: AttentionArgs): Record<keyof OutputParams, number> {
  const { spec } = planned;
  // With latents, the ranks of the layer's groups say how long a row is, and that is in the table.
  const outRow = spec.latent ? 1 : spec.numQHeads * valueDim(spec);
  const outRowStride = spec.latent
    ? needed("outRowStride", args.outRowStride, "latent")
    : (args.outRowStride ?? outRow);
  requireStride("outRowStride", outRowStride, outRow);
  return {
    latentTable: spec.latent ? needed("latent", args.latent, "latent").table : 0,
    sinks: spec.sinks ? needed("sinks", args.sinks, "sinks") : 0,
    out: args.out,
    lse: spec.returnLse ? needed("lse", args.lse, "returnLse") : 0,
    outRowBytes: outRowStride * 4,
    vScale: args.vScale ?? 1,
    partialAcc: planned.pointer("partial sums"),
    partialState: planned.pointer("partial states"),
  };
}

function sourceArgs({ spec, batch }: AttentionPlan, args: AttentionArgs): Record<keyof SourceParams, number> {
  const { storage, valueStorage = storage, latent } = spec;
  const keys = denseRows(spec, storage, spec.mla ? valueDim(spec) : spec.headDim);
  const values = denseRows(spec, valueStorage, spec.mla?.ropeDim ?? valueDim(spec));
  const kStrides = latent ? needed("kStrides", args.kStrides, "latent") : (args.kStrides ?? keys.strides);
  const vStrides = latent ? needed("vStrides", args.vStrides, "latent") : (args.vStrides ?? values.strides);
  const { kScaleStrides = keys.scaleStrides, vScaleStrides = values.scaleStrides } = args;
  const recent = latent?.recent;
  const recentBytes = recent === "f16" ? 2 : 4;
  return {
    kPages: args.kPages,
    vPages: args.vPages,
    kScales: hasScales(storage) ? needed("kScales", args.kScales, `storage ${JSON.stringify(storage)}`) : 0,
    vScales: hasScales(valueStorage) ? needed("vScales", args.vScales, `storage ${JSON.stringify(valueStorage)}`) : 0,
    kPageBytes: kStrides.page * storageBytes(storage),
    kSlotBytes: kStrides.slot * storageBytes(storage),
    kHeadBytes: kStrides.head * storageBytes(storage),
    vPageBytes: vStrides.page * storageBytes(valueStorage),
    vSlotBytes: vStrides.slot * storageBytes(valueStorage),
    vHeadBytes: vStrides.head * storageBytes(valueStorage),
    kScalePageBytes: kScaleStrides.page * 4,
    kScaleSlotBytes: kScaleStrides.slot * 4,
    kScaleHeadBytes: kScaleStrides.head * 4,
    vScalePageBytes: vScaleStrides.page * 4,
    vScaleSlotBytes: vScaleStrides.slot * 4,
    vScaleHeadBytes: vScaleStrides.head * 4,
    ropeTable: spec.rope ? needed("ropeTable", args.ropeTable, "rope") : 0,
    latentTable: args.latent?.table ?? 0,
    up: latent?.keys === "rebuilt" ? needed("latent.up", args.latent?.up, "rebuilt keys") : 0,
    keyBias: latent?.bias ? needed("latent.bias", args.latent?.bias, "latent.bias") : 0,
    recentK: recent ? needed("latent.recentK", args.latent?.recentK, "latent.recent") : 0,
    recentV: recent ? needed("latent.recentV", args.latent?.recentV, "latent.recent") : 0,
    recentCapacity: batch.recent?.capacity ?? 1,
    recentKSlotBytes: recent ? needed("latent.recentRowK", args.latent?.recentRowK, "latent.recent") * recentBytes : 0,
    recentVSlotBytes: recent ? needed("latent.recentRowV", args.latent?.recentRowV, "latent.recent") * recentBytes : 0,
  };
}

function denseRows(spec: AttentionSpec, storage: PageStorage, channels: number) {
  const { pageSize, numKvHeads } = spec;
  return {
    strides: nhdStrides({ pageSize, numKvHeads, headDim: rowElements(storage, channels) }),
    scaleStrides: nhdStrides({ pageSize, numKvHeads, headDim: rowScales(storage, channels) }),
  };
}

const hasScales = (storage: PageStorage): boolean => rowScales(storage, 1) > 0;

function needed<T>(name: string, value: T | undefined, because: string): T {
  if (value === undefined) throw new ArgumentError(`${name} must be given because the spec has ${because}`);
  return value;
}

function requireStride(name: string, stride: number, rowLength: number): void {
  if (Number.isInteger(stride) && stride >= rowLength) return;
  throw new ArgumentError(`${name} must be an integer of at least a row's ${rowLength} elements, got ${stride}`);
}
