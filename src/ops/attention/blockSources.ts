/**
 * Kernel part: the keys and values of one block in scratch, whatever the pages hold: keys and values themselves, the two parts of an MLA
 * key, or Palu's latents, from which keys are rebuilt. From here on nobody knows how they were stored.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { rotateRow } from "../rope/cpu.ts";
import { type AttentionSpec, type LatentSpec, valueDim } from "./contract.ts";
import { clearTail, type Extent } from "./dims.ts";
import { type BlockRange, blockLoader, type RecentSource, type RowSource } from "./keyLoader.ts";
import { latentTableWords } from "./latent.ts";
import { rowPitch, weightedSums } from "./registerTiles.ts";
import { storageBytes } from "./storage.ts";

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

/** Scratch for one block: rows of keys, then of values in the same place, and latents beside them where keys are rebuilt. */
export function blockBytes(spec: AttentionSpec): number {
  const rows = Math.max(rowPitch(spec.headDim), rowPitch(valueDim(spec)));
  return 32 * (rows + (rebuildsKeys(spec.latent) ? rowPitch(spec.latent.maxRankK) : 0));
}

/** Bytes between the values of a block in scratch: those of the keys, where these hold the values too. */
export function valuePitch(spec: AttentionSpec): number {
  return rowPitch(spec.mla ? spec.headDim : valueDim(spec));
}

function rebuildsKeys(latent: LatentSpec | undefined): latent is LatentSpec {
  return latent?.keys === "rebuilt";
}

/** Sets up the loaders of a spec into `block`. To be called outside of all loops; the result, at the start of each task. */
export function blockSource(
  k: KernelBuilder,
  spec: AttentionSpec,
  p: SourceParams,
  block: Address,
): (kvHead: Int, sequence: SequencePlace) => TaskSource {
  const rotate = keyRotation(k, spec, p, block);
  if (spec.mla) return mlaSource(k, spec, spec.mla.ropeDim, p, block, rotate);
  if (spec.latent) return latentSource(k, spec, spec.latent, p, block, rotate);
  const { pageSize, headDim, storage, valueStorage = storage } = spec;
  const loadKeys = blockLoader(k, { pageSize, storage }, block, headDim);
  const loadValues = blockLoader(k, { pageSize, storage: valueStorage }, block, valueDim(spec));
  return (kvHead, sequence) => {
    const keys = keyRows(k, p, kvHead.mul(p.kHeadBytes), kvHead.mul(p.kScaleHeadBytes));
    const values = valueRows(k, p, kvHead.mul(p.vHeadBytes), kvHead.mul(p.vScaleHeadBytes));
    return {
      keyChannels: headDim,
      valueChannels: valueDim(spec),
      loadKeys(range) {
        loadKeys(range, keys, headDim);
        rotate(range, sequence);
      },
      loadValues: (range) => loadValues(range, values, valueDim(spec)),
    };
  };
}

type Rotate = (range: BlockRange, sequence: SequencePlace) => void;
type SourceOfTask = (kvHead: Int, sequence: SequencePlace) => TaskSource;

/** ckv from the key pages, kpe behind it from the value pages; the values are already there. */
function mlaSource(
  k: KernelBuilder,
  spec: AttentionSpec,
  ropeDim: number,
  p: SourceParams,
  block: Address,
  rotate: Rotate,
): SourceOfTask {
  const { pageSize, headDim, storage, valueStorage = storage } = spec;
  const channels = valueDim(spec);
  const loadLatent = blockLoader(k, { pageSize, storage }, block, headDim);
  const kpe = k.let(block.add(channels * 4));
  const loadRope = ropeDim > 0 ? blockLoader(k, { pageSize, storage: valueStorage }, kpe, headDim) : undefined;
  return (_kvHead, sequence) => ({
    keyChannels: headDim,
    valueChannels: channels,
    loadKeys(range) {
      loadLatent(range, keyRows(k, p, k.i32(0), k.i32(0)), channels);
      loadRope?.(range, valueRows(k, p, k.i32(0), k.i32(0)), ropeDim);
      if (headDim % k.lanes !== 0) clearTails(k, block, headDim, range.begin, range.end);
      rotate(range, sequence);
    },
  });
}

function latentSource(
  k: KernelBuilder,
  spec: AttentionSpec,
  latent: LatentSpec,
  p: SourceParams,
  block: Address,
  rotate: Rotate,
): SourceOfTask {
  const { pageSize, headDim, storage, valueStorage = storage } = spec;
  const { recent, maxRankK } = latent;
  const isRebuilt = rebuildsKeys(latent);
  const latents = isRebuilt ? k.let(block.add(blockBytes(spec) - 32 * rowPitch(maxRankK))) : block;
  const loadLatents = blockLoader(k, { pageSize, storage, recent }, latents, maxRankK);
  const loadValues = blockLoader(k, { pageSize, storage: valueStorage, recent }, block, valueDim(spec));
  const recentBytes = recent === "f16" ? 2 : 4;
  return (kvHead, sequence) => {
    const entry = k.let(p.latentTable.add(kvHead.mul(latentTableWords * 4)));
    const word = (index: number): Int => k.let(k.load("i32", entry, index * 4));
    const [rankK, rankV, ranksBeforeK, ranksBeforeV] = [0, 4, 8, 9].map(word);
    const keys = keyRows(k, p, word(1).mul(storageBytes(storage)), word(2).shl(2));
    const values = valueRows(k, p, word(5).mul(storageBytes(valueStorage)), word(6).shl(2));
    const window = (base: Address, slotBytes: Int, ranksBefore: Int): RecentSource | undefined =>
      recent && {
        start: sequence.recentStart,
        rows: k.let(base.add(sequence.window.mul(p.recentCapacity).mul(slotBytes)).add(ranksBefore.mul(recentBytes))),
        slotBytes,
        capacity: p.recentCapacity,
      };
    const recentKeys = window(p.recentK, p.recentKSlotBytes, ranksBeforeK);
    const recentValues = window(p.recentV, p.recentVSlotBytes, ranksBeforeV);
    const up = k.let(p.up.add(word(3).shl(2)));
    const bias = latent.bias ? k.let(p.keyBias.add(kvHead.mul(headDim * 4))) : undefined;
    return {
      keyChannels: isRebuilt ? headDim : rankK,
      valueChannels: rankV,
      loadKeys(range) {
        loadLatents(range, keys, rankK, recentKeys);
        if (!isRebuilt) return;
        rebuildKeys(k, { latents, latentPitch: rowPitch(maxRankK), up, bias, block, headDim, rank: rankK }, range);
        rotate(range, sequence);
      },
      loadValues: (range) => loadValues(range, values, rankV, recentValues),
    };
  };
}

/** keys[j] = latents[j] . up + bias, summed in f32 whatever the latents are stored as. */
function rebuildKeys(
  k: KernelBuilder,
  from: {
    readonly latents: Address;
    readonly latentPitch: number;
    /** [rank, headDim] f32 */
    readonly up: Address;
    readonly bias: Address | undefined;
    readonly block: Address;
    readonly headDim: number;
    readonly rank: Int;
  },
  range: BlockRange,
): void {
  const { headDim, bias, rank } = from;
  const first = k.let(range.begin.and(-4));
  const rows = k.let(range.end.add(3).and(-4).sub(first));
  const keys = k.let(from.block.add(first.mul(rowPitch(headDim))));
  weightedSums(
    k,
    {
      sums: keys,
      sumPitch: rowPitch(headDim),
      weights: k.let(from.latents.add(first.mul(from.latentPitch))),
      weightPitch: from.latentPitch,
      values: from.up,
      valuePitch: headDim * 4,
      columns: headDim,
      rows,
      start:
        () =>
        (_r, { column }) =>
          bias ? k.load("f32v", bias.add(column)) : k.all("f32v", 0),
    },
    0,
    rank,
    false,
  );
  if (headDim % k.lanes !== 0) clearTails(k, keys, headDim, 0, rows);
}

/** Zeroes what lies past the last channel in rows `begin` up to `end`. */
function clearTails(k: KernelBuilder, rows: Address, channels: number, begin: Extent, end: Int): void {
  k.for(begin, end, 1, (j) => clearTail(k, k.let(rows.add(j.mul(rowPitch(channels)))), channels));
}

/** Rotates the keys of a block in place by their absolute positions; does nothing for a spec without rope. */
function keyRotation(k: KernelBuilder, { headDim, rope }: AttentionSpec, p: SourceParams, block: Address): Rotate {
  if (!rope) return () => {};
  const { dim, style, offset = 0 } = rope;
  return ({ blockStart, begin, end }, { positionOffset }) => {
    const first = k.let(positionOffset.add(blockStart));
    k.for(begin, end, 1, (j) => {
      const table = k.let(p.ropeTable.add(first.add(j).mul(dim * 4)));
      rotateRow(k, { rotaryDim: dim, style }, k.let(block.add(j.mul(rowPitch(headDim)).add(offset * 4))), table);
    });
  };
}

function keyRows(k: KernelBuilder, p: SourceParams, offset: Int, scaleOffset: Int): RowSource {
  return {
    pages: k.let(p.kPages.add(offset)),
    pageBytes: p.kPageBytes,
    slotBytes: p.kSlotBytes,
    scales: k.let(p.kScales.add(scaleOffset)),
    scalePageBytes: p.kScalePageBytes,
    scaleSlotBytes: p.kScaleSlotBytes,
  };
}

function valueRows(k: KernelBuilder, p: SourceParams, offset: Int, scaleOffset: Int): RowSource {
  return {
    pages: k.let(p.vPages.add(offset)),
    pageBytes: p.vPageBytes,
    slotBytes: p.vSlotBytes,
    scales: k.let(p.vScales.add(scaleOffset)),
    scalePageBytes: p.vScalePageBytes,
    scaleSlotBytes: p.vScaleSlotBytes,
  };
}
