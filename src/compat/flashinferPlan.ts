/**
 * What FlashInfer's wrappers share: from the arguments of a plan to batches of BatchAttention, and one of these for each variant that runs
 * ask for. FlashInfer decides some things at `run` (the LSE, sinks, a window) that are part of a kernel here: such a variant is compiled
 * and planned at its first run. The wrappers are in flashinferDecode.ts and flashinferPrefill.ts.
 */
import {
  type AttentionResult,
  BatchAttention,
  type BatchAttentionSpec,
  type KvLayout,
  type KvTensors,
  slidingWindowFrom,
} from "../attention/index.ts";
import { type CpuDevice, GrowingBuffer } from "../devices/index.ts";
import {
  type AttentionBatch,
  type ElementStorage,
  type PackedMask,
  validateAttentionBatch,
  validateAttentionSpec,
} from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { RopeTable } from "../ops/rope/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { alibiSlopes } from "./alibiSlopes.ts";
import { requireGroups, requirePositive } from "./attendOnce.ts";
import { windowedMask } from "./flashinferMasks.ts";

/** How positions enter: not at all; rotating keys of an unrotated cache and queries, channel i with i + headDim / 2; as a bias (ALiBi). */
export type PosEncodingMode = "NONE" | "ROPE_LLAMA" | "ALIBI";

/** Options of every plan. */
export interface FlashInferPlanOptions {
  /** "NONE" by default. */
  readonly posEncodingMode?: PosEncodingMode;
  /** Keys that a query sees before its own position; -1, the default, is all of them. */
  readonly windowLeft?: number;
  /** logit = cap * tanh(logit / cap); 0, the default, is off. */
  readonly logitsSoftCap?: number;
  /** headDimQk^-0.5 by default. */
  readonly smScale?: number;
  /** Positions are divided by it before they rotate; 1 by default. */
  readonly ropeScale?: number;
  /** 10000 by default. */
  readonly ropeTheta?: number;
  /** Type of keys and values; "f32" by default. Queries and results are f32. */
  readonly kvDataType?: ElementStorage;
  /** False leaves page ids unread, for callers who know them to be right. */
  readonly checkPages?: boolean;
}

/** Options of every run. */
export interface FlashInferRunOptions {
  /** Factors on the logits (the first two) and on the result. */
  readonly qScale?: number;
  readonly kScale?: number;
  readonly vScale?: number;
  /** Where to write; allocated if absent, and then the caller's to free (`ResultTensor.buffer`). */
  readonly out?: RowsTensor;
  /** Also return the LSE, to base 2, [rows, numQoHeads]; false by default. */
  readonly returnLse?: boolean;
  readonly lse?: DeviceTensor;
  /** [numQoHeads] f32: a logit without key and value for each query head. The LSE leaves it out. */
  readonly sinks?: DeviceTensor;
}

/** What a wrapper's plan comes to. */
export interface PlannedHeads {
  readonly numQoHeads: number;
  readonly numKvHeads: number;
  readonly headDimQk: number;
  readonly headDimVo?: number;
  /** Absent for contiguous rows. */
  readonly pageSize?: number;
  readonly causal: boolean;
  /** Wins over `causal`. */
  readonly customMask?: PackedMask;
}

/** The plan of the last call of `plan`. */
interface CurrentPlan {
  readonly heads: PlannedHeads;
  readonly options: FlashInferPlanOptions;
  readonly batch: AttentionBatch;
  /** Masks with the keys before a window hidden, by window: each is made once, whatever the number of layers. */
  readonly masks: Map<number | undefined, PackedMask>;
}

/** What a run may ask for that is part of a kernel. */
interface RunVariant {
  readonly returnLse?: boolean;
  readonly hasSinks?: boolean;
  /** In place of the plan's. */
  readonly windowLeft?: number;
}

/** A variant's attention, and for which plan and window it was planned last. */
interface PlannedVariant {
  readonly attention: BatchAttention;
  plan: object;
  windowLeft: number | undefined;
}

/** One wrapper's plan, and the memory that goes with it. */
export class FlashInferPlan {
  readonly device: CpuDevice;
  readonly layout: KvLayout;
  readonly #variants = new Map<string, PlannedVariant>();
  readonly #ropeTable: GrowingBuffer;
  readonly #slopes: GrowingBuffer;
  #current: CurrentPlan | undefined;

  constructor(device: CpuDevice, layout: KvLayout) {
    if (layout !== "NHD" && layout !== "HND") throw new ArgumentError(`kvLayout = ${layout} must be NHD or HND`);
    this.device = device;
    this.layout = layout;
    this.#ropeTable = new GrowingBuffer(device, "rope table");
    this.#slopes = new GrowingBuffer(device, "alibi slopes");
  }

  /** Keeps a plan for the runs to come. Throws ArgumentError for options that mean nothing. */
  plan(heads: PlannedHeads, batch: AttentionBatch, options: FlashInferPlanOptions): void {
    const { posEncodingMode = "NONE", logitsSoftCap = 0, ropeScale = 1, ropeTheta = 1e4, smScale } = options;
    requireGroups(heads.numQoHeads, heads.numKvHeads);
    requirePositive({ ropeScale, ropeTheta, smScale });
    if (!(logitsSoftCap >= 0))
      throw new ArgumentError(`logitsSoftCap = ${logitsSoftCap} must be positive, or 0 for none`);
    slidingWindowFrom({ windowLeft: options.windowLeft ?? -1 });
    if (posEncodingMode !== "NONE" && posEncodingMode !== "ROPE_LLAMA" && posEncodingMode !== "ALIBI") {
      throw new ArgumentError(`posEncodingMode = ${posEncodingMode} must be NONE, ROPE_LLAMA or ALIBI`);
    }
    this.#current = undefined;
    const current = { heads, options, batch, masks: new Map<number | undefined, PackedMask>() };
    const { spec, customMask } = variantOf(current, this.layout, {});
    // A variant is planned at its first run, but lengths and pages that do not fit are an error of the plan.
    validateAttentionSpec(spec);
    validateAttentionBatch(spec, { ...batch, customMask }, options.checkPages);
    this.#current = current;
    if (posEncodingMode === "ALIBI") {
      const slopes = alibiSlopes(heads.numQoHeads);
      this.device.f32(this.#slopes.reserve(slopes.byteLength)).set(slopes);
    }
    if (posEncodingMode === "ROPE_LLAMA") this.#writeRopeTable(heads.headDimQk, batch, ropeScale, ropeTheta);
  }

  /** Runs one layer; `windowLeft` replaces that of the plan. */
  async run(
    q: RowsTensor,
    cache: KvTensors,
    { qScale = 1, kScale = 1, vScale = 1, out, returnLse = false, lse, sinks }: FlashInferRunOptions,
    windowLeft?: number,
  ): Promise<AttentionResult> {
    requirePositive({ qScale, kScale, vScale });
    const { posEncodingMode } = this.#planned().options;
    const attention = this.#variant({ returnLse, hasSinks: sinks !== undefined, windowLeft });
    return attention.run({
      q,
      cache,
      out,
      lse,
      sinks,
      kScale: qScale * kScale,
      vScale,
      alibiSlopes: posEncodingMode === "ALIBI" ? this.#slopesTensor() : undefined,
      ropeTable: posEncodingMode === "ROPE_LLAMA" ? this.#ropeTensor() : undefined,
    });
  }

  /** Gives all device memory back. */
  release(): void {
    for (const { attention } of this.#variants.values()) attention.release();
    this.#variants.clear();
    this.#ropeTable.free();
    this.#slopes.free();
    this.#current = undefined;
  }

  #planned(): CurrentPlan {
    if (!this.#current) throw new ArgumentError("plan must be called before run");
    return this.#current;
  }

  /** The attention for what a run asks for, planned for the current batch. */
  #variant(wanted: RunVariant): BatchAttention {
    const current = this.#planned();
    const { spec, customMask } = variantOf(current, this.layout, wanted);
    const key = JSON.stringify(spec);
    let variant = this.#variants.get(key);
    if (!variant) {
      variant = { attention: new BatchAttention(this.device, spec), plan: {}, windowLeft: undefined };
      this.#variants.set(key, variant);
    }
    // The window of a mask is in its bits, not in the spec.
    if (variant.plan !== current || variant.windowLeft !== wanted.windowLeft) {
      variant.attention.plan({ ...current.batch, customMask }, { checkPages: current.options.checkPages });
      variant.plan = current;
      variant.windowLeft = wanted.windowLeft;
    }
    return variant.attention;
  }

  #writeRopeTable(headDim: number, batch: AttentionBatch, ropeScale: number, ropeTheta: number): void {
    const scaling = ropeScale === 1 ? ({ type: "default" } as const) : ({ type: "linear", factor: ropeScale } as const);
    const table = new RopeTable({ headDim, rotaryDim: headDim, style: "halves", theta: ropeTheta, scaling });
    const rows = table.rows(numPositions(batch));
    this.device.f32(this.#ropeTable.reserve(Math.max(4, rows.byteLength))).set(rows);
  }

  #ropeTensor(): DeviceTensor {
    const { heads, batch } = this.#planned();
    const shape = [numPositions(batch), heads.headDimQk];
    return { pointer: this.#ropeTable.pointer, type: "f32", shape };
  }

  #slopesTensor(): DeviceTensor {
    return { pointer: this.#slopes.pointer, type: "f32", shape: [this.#planned().heads.numQoHeads] };
  }
}

/** The kernel for what a run asks for, and the mask that goes with it. */
function variantOf(
  current: CurrentPlan,
  layout: KvLayout,
  { returnLse, hasSinks, windowLeft = current.options.windowLeft ?? -1 }: RunVariant,
): { readonly spec: BatchAttentionSpec; readonly customMask?: PackedMask } {
  const { heads, options } = current;
  const { headDimQk, causal } = heads;
  const { posEncodingMode = "NONE", logitsSoftCap = 0, smScale = headDimQk ** -0.5, kvDataType = "f32" } = options;
  const slidingWindow = slidingWindowFrom({ windowLeft });
  const needsMask = heads.customMask !== undefined || (!causal && slidingWindow !== undefined);
  const spec: BatchAttentionSpec = {
    layout,
    headDim: headDimQk,
    headDimV: heads.headDimVo,
    numQHeads: heads.numQoHeads,
    numKvHeads: heads.numKvHeads,
    pageSize: heads.pageSize,
    storage: kvDataType,
    causal: causal && !needsMask,
    slidingWindow: needsMask ? undefined : slidingWindow,
    customMask: needsMask ? true : undefined,
    softCap: logitsSoftCap === 0 ? undefined : logitsSoftCap,
    smScale,
    alibi: posEncodingMode === "ALIBI" ? true : undefined,
    rope: posEncodingMode === "ROPE_LLAMA" ? { style: "halves", dim: headDimQk, queries: true } : undefined,
    sinks: hasSinks ? true : undefined,
    returnLse: returnLse ? true : undefined,
    lseBase: returnLse ? "2" : undefined,
  };
  return { spec, customMask: needsMask ? maskOfWindow(current, slidingWindow) : undefined };
}

/** Made at the first run that asks for it, then kept for the other layers. */
function maskOfWindow({ heads, batch, masks }: CurrentPlan, slidingWindow: number | undefined): PackedMask {
  let mask = masks.get(slidingWindow);
  if (!mask) {
    mask = windowedMask(batch, heads.customMask, slidingWindow);
    masks.set(slidingWindow, mask);
  }
  return mask;
}

function numPositions({ kvLens, numSeqs }: AttentionBatch): number {
  return kvLens.subarray(0, numSeqs).reduce((most, kvLen) => Math.max(most, kvLen), 0);
}
