/**
 * Writes the keys and values of new tokens to their cache slots. Which slot a token gets is the cache's decision (`slotMapping`, as in vLLM's
 * reshape_and_cache); copying a shared page first is `copyPages`.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { checkPositive, checkRows, countRows, type DeviceTensor, type RowsTensor } from "../elementwise/rows.ts";

/** Where f16 pages saturate. */
export const LARGEST_F16 = 65504;

/** What specialises the append: the shape of a token's row and how pages store it. */
export interface AppendKvSpec {
  readonly numKvHeads: number;
  /** Elements of one head, the same for keys and values. */
  readonly headDim: number;
  /**
   * Element type of the pages. f32 keeps the bits. f16 rounds to nearest, ties to even, and saturates: what would exceed 65504, infinity included,
   * becomes +-65504, so that no later sum meets inf - inf; NaN stays NaN.
   */
  readonly storage: "f32" | "f16";
}

/**
 * Pages of one layer's keys or values: slot s = page * pageSize + offset, head h, element d lie at element
 * s * slotStride + h * headStride + d. Contiguous pages [page][slot][kv head][head dim] need no strides; a cache with keys and values in turn
 * ([page][slot][2 * kv head][head dim], K at 2h, V at 2h + 1) is slotStride = 2 * numKvHeads * headDim, headStride = 2 * headDim.
 */
export interface KvPages {
  /** Byte offset in the device's memory, aligned to the element. */
  readonly pointer: number;
  readonly type: "f32" | "f16";
  readonly numSlots: number;
  readonly slotStride?: number;
  readonly headStride?: number;
}

/**
 * k, v: [tokens, numKvHeads * headDim] f32, or with the heads as an extent of their own; slotMapping: [at least tokens] i32, entry -1 writes nothing.
 * Two tokens must not share a slot. `numTokens` defaults to the rows of `k`.
 */
export interface AppendKvArgs {
  readonly k: RowsTensor;
  readonly v: RowsTensor;
  readonly kPages: KvPages;
  readonly vPages: KvPages;
  readonly slotMapping: DeviceTensor;
  readonly numTokens?: number;
}

/** Element strides of pages that passed their check. */
export interface PageStrides {
  readonly slotStride: number;
  readonly headStride: number;
}

/** Counts and strides (in elements) of a call that passed its checks. */
export interface CheckedAppendKv {
  readonly numTokens: number;
  readonly kStride: number;
  readonly vStride: number;
  readonly kPages: PageStrides;
  readonly vPages: PageStrides;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. The slots are values: see `checkSlotMapping`. */
export function checkAppendKv(spec: AppendKvSpec, args: AppendKvArgs): CheckedAppendKv {
  checkPositive("numKvHeads", spec.numKvHeads);
  checkPositive("headDim", spec.headDim);
  const numTokens = countRows(args.numTokens, args.k);
  const length = spec.numKvHeads * spec.headDim;
  const { slotMapping } = args;
  if (slotMapping.type !== "i32") throw new ArgumentError(`slotMapping must be of type i32, got ${slotMapping.type}`);
  if (slotMapping.shape.length !== 1 || slotMapping.shape[0] < numTokens) {
    throw new ShapeError(
      `slotMapping must have at least ${numTokens} entries, got shape [${slotMapping.shape.join(", ")}]`,
    );
  }
  if (args.kPages.numSlots !== args.vPages.numSlots) {
    throw new ArgumentError(
      `vPages.numSlots must be that of kPages, ${args.kPages.numSlots}, got ${args.vPages.numSlots}`,
    );
  }
  return {
    numTokens,
    kStride: checkRows("k", args.k, numTokens, length),
    vStride: checkRows("v", args.v, numTokens, length),
    kPages: checkPages("kPages", spec, args.kPages),
    vPages: checkPages("vPages", spec, args.vPages),
  };
}

/**
 * Checks the first `numTokens` slots on the host, once a step rather than once a layer: each is -1 or below `numSlots`.
 * Throws ArgumentError naming the entry. The kernel skips any other value too, so that a wrong one cannot reach foreign memory.
 */
export function checkSlotMapping(slotMapping: ArrayLike<number>, numTokens: number, numSlots: number): void {
  for (let token = 0; token < numTokens; token++) {
    const slot = slotMapping[token];
    if (slot === -1 || (Number.isInteger(slot) && slot >= 0 && slot < numSlots)) continue;
    throw new ArgumentError(
      `slotMapping[${token}] = ${slot} is not a slot: the pool has ${numSlots} (-1 writes nothing)`,
    );
  }
}

function checkPages(argument: string, spec: AppendKvSpec, pages: KvPages): PageStrides {
  if (pages.type !== spec.storage) {
    throw new ArgumentError(`${argument} must be of type ${spec.storage}, got ${pages.type}`);
  }
  const numBytes = pages.type === "f16" ? 2 : 4;
  if (pages.pointer % numBytes !== 0) {
    throw new ArgumentError(`${argument}.pointer must be a multiple of ${numBytes}, got ${pages.pointer}`);
  }
  checkPositive(`${argument}.numSlots`, pages.numSlots);
  const headStride = pages.headStride ?? spec.headDim;
  if (!Number.isInteger(headStride) || headStride < spec.headDim) {
    throw new ArgumentError(
      `${argument}.headStride must be at least the head dimension ${spec.headDim}, got ${headStride}`,
    );
  }
  const slotStride = pages.slotStride ?? spec.numKvHeads * headStride;
  const occupied = (spec.numKvHeads - 1) * headStride + spec.headDim;
  if (!Number.isInteger(slotStride) || slotStride < occupied) {
    throw new ArgumentError(
      `${argument}.slotStride must be at least ${occupied}, the elements of one slot, got ${slotStride}`,
    );
  }
  return { slotStride, headStride };
}
