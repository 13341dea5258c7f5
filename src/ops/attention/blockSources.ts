/**
 * Kernel part: the keys and values of one block in scratch, whatever the pages hold: keys and values themselves, the two parts of an MLA
 * key, or Palu's latents (latentSource.ts). From here on nobody knows how they were stored.
 */
import type { KernelBuilder, Value } from "../../kernels/index.ts";
import { rotateRow } from "../rope/cpu.ts";
import { type AttentionSpec, valueDim } from "./contract.ts";
import { clearRows } from "./dims.ts";
import { blockLoader } from "./keyLoader.ts";
import { latentBytes, latentSource } from "./latentSource.ts";
import { rowPitch } from "./registerTiles.ts";
import { keyRows, type Rotate, type SourceOfTask, type SourceParams, valueRows } from "./sourceParams.ts";

type Address = Value<"i32">;

/** Scratch for one block: rows of keys, then of values in the same place, and latents beside them where keys are rebuilt. */
export function blockBytes(spec: AttentionSpec): number {
  return rowsBytes(spec) + latentBytes(spec.latent);
}

function rowsBytes(spec: AttentionSpec): number {
  return 32 * Math.max(rowPitch(spec.headDim), rowPitch(valueDim(spec)));
}

/** Bytes between the values of a block in scratch: those of the keys, where these hold the values too. */
export function valuePitch(spec: AttentionSpec): number {
  return rowPitch(spec.mla ? spec.headDim : valueDim(spec));
}

/** Sets up the loaders of a spec into `block`. To be called outside of all loops; the result, at the start of each task. */
export function blockSource(k: KernelBuilder, spec: AttentionSpec, p: SourceParams, block: Address): SourceOfTask {
  const rotate = keyRotation(k, spec, p, block);
  if (spec.mla) return mlaSource(k, spec, spec.mla.ropeDim, p, block, rotate);
  if (spec.latent) {
    return latentSource(k, spec, spec.latent, p, { block, latents: k.let(block.add(rowsBytes(spec))) }, rotate);
  }
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
      if (headDim % k.lanes !== 0) clearRows(k, block, rowPitch(headDim), headDim, range.begin, range.end);
      rotate(range, sequence);
    },
  });
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
