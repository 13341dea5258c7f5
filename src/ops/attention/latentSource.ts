/**
 * Kernel part: blocks of Palu's latents: ranks and places from the table of the layer, recent tokens from their window, keys rebuilt by the
 * up-projection and then biased and rotated.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { type AttentionSpec, type LatentSpec, valueDim } from "./contract.ts";
import { clearRows } from "./dims.ts";
import { type BlockRange, blockLoader, type RecentSource } from "./keyLoader.ts";
import { latentTableWords } from "./latent.ts";
import { rowPitch, weightedSums } from "./registerTiles.ts";
import { keyRows, type Rotate, type SourceOfTask, type SourceParams, valueRows } from "./sourceParams.ts";
import { storageBytes } from "./storage.ts";

type Address = Value<"i32">;
type Int = Value<"i32">;

/** Scratch for the latents of a block, beside its keys, where these are rebuilt. */
export function latentBytes(latent: LatentSpec | undefined): number {
  return latent?.keys === "rebuilt" ? 32 * rowPitch(latent.maxRankK) : 0;
}

/** Sets up the loaders: latents of keys into `latents` if keys are rebuilt into `block`, else into `block` themselves. */
export function latentSource(
  k: KernelBuilder,
  spec: AttentionSpec,
  latent: LatentSpec,
  p: SourceParams,
  scratch: { readonly block: Address; readonly latents: Address },
  rotate: Rotate,
): SourceOfTask {
  const { pageSize, headDim, storage, valueStorage = storage } = spec;
  const { recent, maxRankK } = latent;
  const isRebuilt = latent.keys === "rebuilt";
  const { block } = scratch;
  const latents = isRebuilt ? scratch.latents : block;
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
  if (headDim % k.lanes !== 0) clearRows(k, keys, rowPitch(headDim), headDim, 0, rows);
}
