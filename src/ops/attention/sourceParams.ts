/**
 * Kernel parts: what says where keys and values are: the parameters of the kernel, what a task reads of its sequence, and what it gets from
 * the loaders that blockSources.ts sets up.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import type { Extent } from "./dims.ts";
import type { BlockRange, RowSource } from "./keyLoader.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Parameters of the kernel that say where keys and values are. Distances in bytes. */
export const sourceParams = {
  kPages: "pointer",
  vPages: "pointer",
  kScales: "pointer",
  vScales: "pointer",
  kPageBytes: "i32",
  kSlotBytes: "i32",
  kHeadBytes: "i32",
  vPageBytes: "i32",
  vSlotBytes: "i32",
  vHeadBytes: "i32",
  kScalePageBytes: "i32",
  kScaleSlotBytes: "i32",
  kScaleHeadBytes: "i32",
  vScalePageBytes: "i32",
  vScaleSlotBytes: "i32",
  vScaleHeadBytes: "i32",
  ropeTable: "pointer",
  latentTable: "pointer",
  up: "pointer",
  keyBias: "pointer",
  recentK: "pointer",
  recentV: "pointer",
  recentCapacity: "i32",
  recentKSlotBytes: "i32",
  recentVSlotBytes: "i32",
} as const;

export type SourceParams = { readonly [N in keyof typeof sourceParams]: Int };

/** What a task reads of its sequence. */
export interface SequencePlace {
  /** First page id. */
  readonly blockTable: Address;
  /** Absolute position of key 0. */
  readonly positionOffset: Int;
  readonly recentStart: Int;
  readonly window: Int;
}

/** The blocks of one task: loads into the scratch it was set up with. */
export interface TaskSource {
  /** Channels of a query and a key, and of a value. */
  readonly keyChannels: Extent;
  readonly valueChannels: Extent;
  loadKeys(range: BlockRange): void;
  /** Absent where the values are the first channels of the keys. */
  readonly loadValues?: (range: BlockRange) => void;
}

/** What is done with the keys of a block when they are in scratch: their rotation. */
export type Rotate = (range: BlockRange, sequence: SequencePlace) => void;

/** Sets up the loads of one task, at its start. */
export type SourceOfTask = (kvHead: Int, sequence: SequencePlace) => TaskSource;

/** The rows of a head in the key pages, `offset` bytes into each. */
export function keyRows(k: KernelBuilder, p: SourceParams, offset: Int, scaleOffset: Int): RowSource {
  return {
    pages: k.let(p.kPages.add(offset)),
    pageBytes: p.kPageBytes,
    slotBytes: p.kSlotBytes,
    scales: k.let(p.kScales.add(scaleOffset)),
    scalePageBytes: p.kScalePageBytes,
    scaleSlotBytes: p.kScaleSlotBytes,
  };
}

/** The rows of a head in the value pages. */
export function valueRows(k: KernelBuilder, p: SourceParams, offset: Int, scaleOffset: Int): RowSource {
  return {
    pages: k.let(p.vPages.add(offset)),
    pageBytes: p.vPageBytes,
    slotBytes: p.vSlotBytes,
    scales: k.let(p.vScales.add(scaleOffset)),
    scalePageBytes: p.vScalePageBytes,
    scaleSlotBytes: p.vScaleSlotBytes,
  };
}
