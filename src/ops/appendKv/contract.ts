/**
 * Writes the keys and values of new tokens to their cache slots. Which slot a token gets is the cache's decision (`slotMapping`, as in vLLM's
 * reshape_and_cache); where its rows lie is in pages.ts; copying a shared page first is `copyPages`.
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { type PageStorage, validateStorage } from "../attention/storage.ts";
import type { EncodeOptions } from "../attention/storageCodec.ts";
import { checkPositive, checkRows, countRows, type DeviceTensor, type RowsTensor } from "../elementwise/rows.ts";
import { type CheckedPages, checkPages, headRows, type KvPages, noPages } from "./pages.ts";

/** What specialises the append: the shape of a token's row and how pages store it. */
export interface AppendKvSpec {
  readonly numKvHeads: number;
  /** Elements of a key of one head. */
  readonly headDim: number;
  /** Elements of a value of one head; headDim by default. 0: there are none, and `v` and `vPages` are absent. */
  readonly headDimV?: number;
  /**
   * How pages store a row, as `encodeRows` of ops/attention defines it: to nearest, ties to even. f32 keeps the bits, bf16 infinities. f16 and the
   * 8-bit floats saturate, so that no later sum meets inf - inf, and keep NaN. In storages with scales a row (group, tile) with a NaN
   * decodes to NaN.
   */
  readonly storage: PageStorage;
  /** Storage of the values; `storage` by default. */
  readonly valueStorage?: PageStorage;
  /** How grouped storages choose their scales; by default so that each number is kept to half a step. */
  readonly encoding?: EncodeOptions;
}

/**
 * k: [tokens, numKvHeads * headDim] f32, or with the heads as an extent of their own, v likewise with headDimV; slotMapping: [at least tokens]
 * i32, entry -1 (any other that is no slot, too) writes nothing. Two tokens must not share a slot. `numTokens` defaults to the rows of `k`.
 */
export interface AppendKvArgs {
  readonly k: RowsTensor;
  readonly v?: RowsTensor;
  readonly kPages: KvPages;
  readonly vPages?: KvPages;
  readonly slotMapping: DeviceTensor;
  readonly numTokens?: number;
  /** What keys are divided by before they are stored: the `kScale` that attention multiplies them with. */
  readonly kScale?: number;
  readonly vScale?: number;
}

/** Counts, strides and pages of a call that passed its checks. */
export interface CheckedAppendKv {
  readonly numTokens: number;
  /** Elements between two rows. */
  readonly kStride: number;
  readonly vStride: number;
  readonly kPages: CheckedPages;
  readonly vPages: CheckedPages;
}

/** What errors call keys and values, and what their heads' sizes: an operation that is made of this one has names of its own. */
export interface AppendKvNames {
  readonly k: string;
  readonly v: string;
  readonly kPages: string;
  readonly vPages: string;
  readonly headDim: string;
  readonly headDimV: string;
}

const kvNames: AppendKvNames = {
  k: "k",
  v: "v",
  kPages: "kPages",
  vPages: "vPages",
  headDim: "headDim",
  headDimV: "headDimV",
};

/** Throws ShapeError or ArgumentError naming the argument that does not fit. The slots are values: see `checkSlotMapping`. */
export function checkAppendKv(spec: AppendKvSpec, args: AppendKvArgs, names = kvNames): CheckedAppendKv {
  const { numKvHeads, headDim, headDimV = headDim, storage, valueStorage = storage } = spec;
  checkPositive("numKvHeads", numKvHeads);
  checkPositive(names.headDim, headDim);
  if (headDimV !== 0) checkPositive(names.headDimV, headDimV);
  validateStorage("storage", storage);
  validateStorage("valueStorage", valueStorage);
  checkScale("kScale", args.kScale);
  checkScale("vScale", args.vScale);
  const numTokens = countRows(args.numTokens, args.k);
  checkSlotTensor("slotMapping", args.slotMapping, numTokens);
  const kStride = checkRows(names.k, args.k, numTokens, numKvHeads * headDim);
  const kPages = checkPages(names.kPages, headRows(storage, numKvHeads, headDim), args.kPages);
  if (headDimV === 0) return { numTokens, kStride, vStride: 0, kPages, vPages: noPages };
  const { v, vPages: givenPages } = args;
  if (!v || !givenPages) {
    throw new ArgumentError(`${names.v} and ${names.vPages} must be given unless ${names.headDimV} is 0`);
  }
  const vStride = checkRows(names.v, v, numTokens, numKvHeads * headDimV);
  const vPages = checkPages(names.vPages, headRows(valueStorage, numKvHeads, headDimV), givenPages);
  for (const name of ["numSlots", "pageSize"] as const) {
    if (kPages[name] !== vPages[name]) {
      throw new ArgumentError(
        `${names.vPages}.${name} must be that of ${names.kPages}, ${kPages[name]}, got ${vPages[name]}`,
      );
    }
  }
  return { numTokens, kStride, vStride, kPages, vPages };
}

/** Throws unless the tensor has an i32 for each token. */
export function checkSlotTensor(argument: string, slots: DeviceTensor, numTokens: number): void {
  if (slots.type !== "i32") throw new ArgumentError(`${argument} must be of type i32, got ${slots.type}`);
  if (slots.shape.length !== 1 || slots.shape[0] < numTokens) {
    throw new ShapeError(`${argument} must have at least ${numTokens} entries, got shape [${slots.shape.join(", ")}]`);
  }
}

function checkScale(argument: string, scale: number | undefined): void {
  if (scale === undefined || (Number.isFinite(scale) && Math.fround(scale) > 0)) return;
  throw new ArgumentError(`${argument} must be a positive number, got ${scale}`);
}
