/**
 * Attention on the CPU device: the plan of a step with its device memory, and the function that records a layer's call. The kernels are in
 * cpu.ts, what they compute in contract.ts and reference.ts.
 */
import type { CpuDevice, DeviceBuffer, DeviceKernel } from "../../devices/index.ts";
import { ArgumentError } from "../../tensor/index.ts";
import type { Recorder } from "../recorder.ts";
import type { AttentionBatch } from "./batch.ts";
import type { AttentionSpec } from "./contract.ts";
import { attentionKernel, attentionMergeKernel } from "./cpu.ts";
import { AttentionPlan } from "./plan.ts";
import { nhdStrides, type PageStrides, storageBytes } from "./storage.ts";

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

  /**
   * Compiles the kernels of the spec. Throws ArgumentError for one that no kernel can run.
   *
   * @param threads How many workers the work list should keep busy; the result does not depend on it.
   */
  constructor(device: CpuDevice, spec: AttentionSpec, threads = device.threads) {
    this.device = device;
    refuseUnbuilt(spec);
    this.plan = new AttentionPlan(spec, threads);
    this.kernel = device.compile(attentionKernel, spec);
    this.mergeKernel = device.compile(attentionMergeKernel, spec);
  }

  get spec(): AttentionSpec {
    return this.plan.spec;
  }

  /** Plans a step and copies its work list and block tables. Throws ArgumentError for lengths or pages that do not fit together. */
  update(batch: AttentionBatch): void {
    this.plan.update(batch);
    this.#write("items", this.plan.items);
    this.#write("merges", this.plan.merges);
    this.#write("block tables", batch.blockTables.subarray(0, batch.numSeqs * batch.maxPages));
    this.#reserve("partial sums", this.plan.numPartialRows * this.spec.headDim * 4);
    this.#reserve("partial states", this.plan.numPartialRows * 8);
  }

  /** Address of one of the plan's buffers; 0 where the plan needs none. */
  pointer(name: "items" | "merges" | "block tables" | "partial sums" | "partial states"): number {
    return this.#buffers.get(name)?.pointer ?? 0;
  }

  /** Changes whenever a call recorded before `update` would differ from one recorded after: equal keys let a recording be run again. */
  get recordingKey(): string {
    const { numItems, numMerges, batch } = this.plan;
    const pointers = [...this.#buffers.values()].map(({ pointer }) => pointer);
    return [numItems, numMerges, batch.maxPages, ...pointers].join();
  }

  /** Gives the device memory back. */
  release(): void {
    for (const buffer of this.#buffers.values()) this.device.free(buffer);
    this.#buffers.clear();
  }

  #write(name: string, values: Int32Array): void {
    if (values.length === 0) return;
    this.device.i32(this.#reserve(name, values.byteLength)).set(values);
  }

  #reserve(name: string, numBytes: number): DeviceBuffer {
    const old = this.#buffers.get(name);
    if (old && old.numBytes >= numBytes) return old;
    if (old) this.device.free(old);
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
  readonly vPages: number;
  /** [numRows, numQHeads, headDim]; may be q itself only if the rows have the same stride. */
  readonly out: number;
  /** [numRows, numQHeads]; needed if the spec has returnLse. */
  readonly lse?: number;
  /** Elements between the rows of q; numQHeads * headDim by default. */
  readonly qRowStride?: number;
  /** Elements between the rows of out; numQHeads * headDim by default. */
  readonly outRowStride?: number;
  /** nhdStrides of the spec by default. */
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
  const { plan, spec } = planned;
  const { numQHeads, numKvHeads, headDim, storage } = spec;
  const rowLength = numQHeads * headDim;
  const { lse, qRowStride = rowLength, outRowStride = rowLength } = args;
  if (spec.returnLse && lse === undefined) throw new ArgumentError("lse must be given because the spec has returnLse");
  if (spec.alibi && args.alibiSlopes === undefined) {
    throw new ArgumentError("alibiSlopes must be given because the spec has alibi");
  }
  requireStride("qRowStride", qRowStride, rowLength);
  requireStride("outRowStride", outRowStride, rowLength);
  const { kStrides = nhdStrides(spec), vStrides = nhdStrides(spec) } = args;
  const elementBytes = storageBytes(storage);
  const shared = {
    out: args.out,
    lse: lse ?? 0,
    outRowBytes: outRowStride * 4,
    vScale: args.vScale ?? 1,
    partialAcc: planned.pointer("partial sums"),
    partialState: planned.pointer("partial states"),
  };
  commands.launch(
    planned.kernel,
    {
      ...shared,
      items: planned.pointer("items"),
      q: args.q,
      kScale: args.kScale ?? 1,
      alibiSlopes: args.alibiSlopes ?? 0,
      kPages: args.kPages,
      vPages: args.vPages,
      blockTables: planned.pointer("block tables"),
      maxPages: plan.batch.maxPages,
      qRowBytes: qRowStride * 4,
      kPageBytes: kStrides.page * elementBytes,
      kSlotBytes: kStrides.slot * elementBytes,
      kHeadBytes: kStrides.head * elementBytes,
      vPageBytes: vStrides.page * elementBytes,
      vSlotBytes: vStrides.slot * elementBytes,
      vHeadBytes: vStrides.head * elementBytes,
    },
    plan.numItems * numKvHeads,
    { grain: 1 },
  );
  commands.launch(planned.mergeKernel, { ...shared, merges: planned.pointer("merges") }, plan.numMerges * numKvHeads, {
    grain: 1,
  });
}

function refuseUnbuilt(spec: AttentionSpec): void {
  const unbuilt = ["headDimV", "mla", "latent", "rope", "customMask", "maskValue", "sinks", "lseBase"] as const;
  for (const name of unbuilt) if (spec[name] !== undefined) throw new ArgumentError(`${name} has no kernel yet`);
  if (spec.headDim % 4 !== 0) throw new ArgumentError(`headDim must be a multiple of 4, got ${spec.headDim}`);
}

function requireStride(name: string, stride: number, rowLength: number): void {
  if (Number.isInteger(stride) && stride >= rowLength) return;
  throw new ArgumentError(`${name} must be an integer of at least numQHeads * headDim = ${rowLength}, got ${stride}`);
}
