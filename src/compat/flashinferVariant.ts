/**
 * From a plan and what a run asks for to the kernel that does it: FlashInfer decides the LSE, sinks and a window at `run`, which are parts of
 * the spec here. Windows that a kernel has no word for become masks.
 */
import { type BatchAttentionSpec, type KvLayout, slidingWindowFrom } from "../attention/index.ts";
import type { AttentionBatch, PackedMask } from "../ops/attention/index.ts";
import { windowedMask } from "./flashinferMasks.ts";
import type { FlashInferPlanOptions, PlannedHeads } from "./flashinferOptions.ts";

/** What the last call of `plan` was given. */
export interface CurrentPlan {
  readonly heads: PlannedHeads;
  readonly options: FlashInferPlanOptions;
  readonly batch: AttentionBatch;
  /** Masks with the keys before a window hidden, by window: each is made once, whatever the number of layers. */
  readonly masks: Map<number | undefined, PackedMask>;
}

/** What a run may ask for that is part of a kernel. */
export interface RunVariant {
  readonly returnLse?: boolean;
  readonly hasSinks?: boolean;
  /** In place of the plan's. */
  readonly windowLeft?: number;
}

/** The kernel for what a run asks for, and the mask that goes with it. */
export function variantOf(
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
