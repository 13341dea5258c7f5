/**
 * Writes the low-rank latents of new tokens (Palu, arXiv 2407.21118) to pages, plain or quantised, or to the windows of recent tokens; and
 * moves tokens from their window to pages, which quantises them. A token's row holds the latents of all head groups one after the other, whose
 * ranks differ and are data of the call: nothing is compiled for them.
 */

import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { checkSlotTensor } from "../appendKv/contract.ts";
import { type CheckedPages, checkPages, type KvPages } from "../appendKv/pages.ts";
import { type LatentLayout, latentTableWords } from "../attention/latent.ts";
import { type PageStorage, rowElements, rowScales, validateStorage } from "../attention/storage.ts";
import type { EncodeOptions } from "../attention/storageCodec.ts";
import { checkPositive, checkRows, countRows, type DeviceTensor, type RowsTensor } from "../elementwise/rows.ts";

/** The largest rank of a group: attention reads no longer rows. */
export const LARGEST_RANK = 1024;

/** How pages hold the latents. Each group's row is encoded on its own, with its own scales. */
export interface AppendLatentSpec {
  readonly storage: PageStorage;
  /** Storage of the value latents; `storage` by default. */
  readonly valueStorage?: PageStorage;
  /** How grouped storages choose their scales, by default with 0 in every range; Palu's own scheme is `range: "values"`. */
  readonly encoding?: EncodeOptions;
}

/** Where a layer's latents go. */
export interface LatentPages {
  /** Ranks and heads of the layer. */
  readonly layout: LatentLayout;
  /** Device address of a copy of `layout.table`. */
  readonly table: number;
  /**
   * In each slot the rows of all groups one after the other, `layout.keyRow` units; the scales likewise, `layout.keyScales` f32, in an array of
   * their own or behind the rows. There are no heads: headStride says nothing.
   */
  readonly kPages: KvPages;
  /** The same of the values: `layout.valueRow` units, `layout.valueScales` f32. */
  readonly vPages: KvPages;
}

/**
 * k: [tokens, sum of ranksK] f32, v: [tokens, sum of ranksV] f32, slotMapping: [at least tokens] i32, -1 writes nothing. Two tokens must not
 * share a slot. `numTokens` defaults to the rows of `k`.
 */
export interface AppendLatentArgs extends LatentPages {
  readonly k: RowsTensor;
  readonly v: RowsTensor;
  readonly slotMapping: DeviceTensor;
  readonly numTokens?: number;
}

/** Windows of recent tokens: [numWindows, capacity, latents of a token], keys and values apart, as attention has them. */
export interface RecentWindows {
  readonly type: "f32" | "f16";
  /** Tokens of a window: token t of its sequence is at slot t mod capacity. */
  readonly capacity: number;
  readonly numWindows: number;
  /** Device addresses. */
  readonly recentK: number;
  readonly recentV: number;
}

/**
 * flushes: [at least numFlushes, 3] i32 (window, slot in the window, slot of the pages); an entry with any of them out of range moves nothing,
 * as -1 does. Two entries must not share a page slot. The window keeps its tokens.
 */
export interface FlushWindowArgs extends LatentPages {
  readonly recent: RecentWindows;
  readonly flushes: DeviceTensor;
  /** The rows of `flushes` by default. */
  readonly numFlushes?: number;
}

/** The windows as pages of an append: with slot `windowSlot` it puts a token's latents where attention looks for them. */
export function windowPages({ type, capacity, numWindows, recentK, recentV }: RecentWindows): {
  readonly kPages: KvPages;
  readonly vPages: KvPages;
} {
  const numSlots = numWindows * capacity;
  return { kPages: { pointer: recentK, type, numSlots }, vPages: { pointer: recentV, type, numSlots } };
}

/** The slot of a sequence's token among those of all windows. */
export function windowSlot(window: number, token: number, capacity: number): number {
  return window * capacity + (token % capacity);
}

/** Pages of a call that passed its checks. */
export interface CheckedLatentPages {
  readonly kPages: CheckedPages;
  readonly vPages: CheckedPages;
  /** Key/value heads of a group. */
  readonly headsPerGroup: number;
}

/** What an append adds to it: rows and the elements between two of them. */
export interface CheckedAppendLatent extends CheckedLatentPages {
  readonly numTokens: number;
  readonly kStride: number;
  readonly vStride: number;
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. */
export function checkAppendLatent(spec: AppendLatentSpec, args: AppendLatentArgs): CheckedAppendLatent {
  const { ranksK, ranksV } = args.layout;
  const numTokens = countRows(args.numTokens, args.k);
  checkSlotTensor("slotMapping", args.slotMapping, numTokens);
  return {
    ...checkLatentPages(spec, args),
    numTokens,
    kStride: checkRows("k", args.k, numTokens, sum(ranksK)),
    vStride: checkRows("v", args.v, numTokens, sum(ranksV)),
  };
}

/** Throws ShapeError or ArgumentError naming the argument that does not fit. The entries are values: see `checkFlushes`. */
export function checkFlushWindow(
  spec: AppendLatentSpec,
  args: FlushWindowArgs,
): CheckedLatentPages & { readonly numFlushes: number } {
  const { flushes, recent } = args;
  const numFlushes = countRows(args.numFlushes, flushes);
  if (flushes.type !== "i32") throw new ArgumentError(`flushes must be of type i32, got ${flushes.type}`);
  if (flushes.shape.length !== 2 || flushes.shape[0] < numFlushes || flushes.shape[1] !== 3) {
    throw new ShapeError(`flushes must have shape [at least ${numFlushes}, 3], got [${flushes.shape.join(", ")}]`);
  }
  if (recent.type !== "f32" && recent.type !== "f16") {
    throw new ArgumentError(`recent.type must be f32 or f16, got ${recent.type}`);
  }
  checkPositive("recent.capacity", recent.capacity);
  checkPositive("recent.numWindows", recent.numWindows);
  return { ...checkLatentPages(spec, args), numFlushes };
}

/** Checks flushes on the host. Throws ArgumentError naming the entry that is out of range, or the page slot that two entries share. */
export function checkFlushes(
  flushes: ArrayLike<number>,
  numFlushes: number,
  { capacity, numWindows }: Pick<RecentWindows, "capacity" | "numWindows">,
  numSlots: number,
): void {
  const limits = [
    { what: "a window", limit: numWindows },
    { what: "a slot of a window", limit: capacity },
    { what: "a slot", limit: numSlots },
  ];
  const written = new Set<number>();
  for (let i = 0; i < numFlushes; i++) {
    for (const [part, { what, limit }] of limits.entries()) {
      const value = flushes[3 * i + part];
      if (Number.isInteger(value) && value >= 0 && value < limit) continue;
      throw new ArgumentError(`flushes[${i}][${part}] = ${value} is not ${what}: there are ${limit}`);
    }
    const slot = flushes[3 * i + 2];
    if (written.has(slot)) throw new ArgumentError(`flushes[${i}] writes slot ${slot}, which another entry writes too`);
    written.add(slot);
  }
}

function checkLatentPages(spec: AppendLatentSpec, { layout, kPages, vPages }: LatentPages): CheckedLatentPages {
  const { storage, valueStorage = storage } = spec;
  validateStorage("storage", storage);
  validateStorage("valueStorage", valueStorage);
  const { ranksK, ranksV, numGroups, table } = layout;
  for (const [name, ranks] of Object.entries({ ranksK, ranksV })) {
    for (const [group, rank] of ranks.entries()) {
      if (rank <= LARGEST_RANK) continue;
      throw new ArgumentError(`layout.${name}[${group}] must be at most ${LARGEST_RANK}, got ${rank}`);
    }
  }
  const slotRows = (type: PageStorage, ranks: readonly number[]) => ({
    storage: type,
    numHeads: 1,
    units: sum(ranks.map((rank) => rowElements(type, rank))),
    scales: sum(ranks.map((rank) => rowScales(type, rank))),
  });
  const checked = {
    kPages: checkPages("kPages", slotRows(storage, ranksK), kPages),
    vPages: checkPages("vPages", slotRows(valueStorage, ranksV), vPages),
    headsPerGroup: table.length / latentTableWords / numGroups,
  };
  for (const name of ["numSlots", "pageSize"] as const) {
    if (checked.kPages[name] !== checked.vPages[name]) {
      throw new ArgumentError(
        `vPages.${name} must be that of kPages, ${checked.kPages[name]}, got ${checked.vPages[name]}`,
      );
    }
  }
  return checked;
}

export function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
