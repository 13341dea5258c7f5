/**
 * One wrapper's plan: batches of BatchAttention, one of these for each variant that runs ask for, compiled and planned at its first run; and
 * the tables that positions need. Options are in flashinferOptions.ts, variants in flashinferVariant.ts, the wrappers in flashinferDecode.ts
 * and flashinferPrefill.ts.
 */
import { type AttentionResult, BatchAttention, type KvLayout, type KvTensors } from "../attention/index.ts";
import { type CpuDevice, GrowingBuffer } from "../devices/index.ts";
import {
  type AttentionBatch,
  type PackedMask,
  validateAttentionBatch,
  validateAttentionSpec,
} from "../ops/attention/index.ts";
import type { DeviceTensor, RowsTensor } from "../ops/elementwise/index.ts";
import { RopeTable } from "../ops/rope/index.ts";
import { ArgumentError } from "../tensor/index.ts";
import { alibiSlopes } from "./alibiSlopes.ts";
import { requirePositive } from "./attendOnce.ts";
import {
  checkPlanOptions,
  type FlashInferPlanOptions,
  type FlashInferRunOptions,
  type PlannedHeads,
} from "./flashinferOptions.ts";
import { type CurrentPlan, type RunVariant, variantOf } from "./flashinferVariant.ts";

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
    checkPlanOptions(heads, options);
    const { posEncodingMode, ropeScale = 1, ropeTheta = 1e4 } = options;
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

function numPositions({ kvLens, numSeqs }: AttentionBatch): number {
  return kvLens.subarray(0, numSeqs).reduce((most, kvLen) => Math.max(most, kvLen), 0);
}
