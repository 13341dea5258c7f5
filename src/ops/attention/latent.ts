/**
 * Palu's low-rank heads: which latent each key/value head reads, and where its up-projection and its outputs lie. Ranks differ between
 * layers and groups, so they reach the kernel as a table and not as part of the spec. Source: Chang et al. 2024 (arXiv 2407.21118).
 */
import { ArgumentError, ShapeError } from "../../tensor/index.ts";
import { type PageStorage, rowElements, rowScales } from "./storage.ts";

/** The ranks of one layer. Neighbouring key/value heads form groups of equal size: one head each is M-LRD, all together J-LRD. */
export interface LatentRanks {
  /** [groups] */
  readonly ranksK: readonly number[];
  /** [groups] */
  readonly ranksV: readonly number[];
}

/**
 * How one token's latents, up-projections and outputs are laid out: the groups one after the other in each. Counts are in units of the
 * storage (see `rowElements`), and in f32 for scales, up-projections and outputs.
 */
export interface LatentLayout extends LatentRanks {
  readonly numGroups: number;
  /** Units of a token's key latents: the rows of all groups. */
  readonly keyRow: number;
  readonly valueRow: number;
  /** Scales of a token's key latents. */
  readonly keyScales: number;
  readonly valueScales: number;
  /** Numbers of a token's latents: the sums of the ranks. */
  readonly keyRanks: number;
  readonly valueRanks: number;
  /** Elements of U_k: for each key/value head in order [rank of its group, headDim]. */
  readonly upElements: number;
  /** Elements of an output row: for each query head in order the rank of its group's values. */
  readonly outRow: number;
  /** Output element at which each query head begins. */
  readonly outOffsets: Int32Array;
  /** What the kernel reads, [numKvHeads, latentTableWords]. */
  readonly table: Int32Array;
}

/**
 * Words a key/value head has in the table: rank, latent, scales and U_k of its keys; rank, latent and scales of its values; outputs; ranks of
 * all groups before its own, of keys and of values (where its latents are in a recent window); two unused.
 */
export const latentTableWords = 12;

/** The layout of a layer's latents. Throws ArgumentError or ShapeError if ranks and heads do not fit together. */
export function latentLayout(
  ranks: LatentRanks,
  shape: {
    readonly numQHeads: number;
    readonly numKvHeads: number;
    readonly headDim: number;
    readonly storage: PageStorage;
    readonly valueStorage?: PageStorage;
  },
): LatentLayout {
  const { ranksK, ranksV } = ranks;
  const { numQHeads, numKvHeads, headDim, storage, valueStorage = storage } = shape;
  const numGroups = ranksK.length;
  if (ranksV.length !== numGroups) {
    throw new ShapeError(
      `ranksV must have an entry for each of the ${numGroups} groups of ranksK, got ${ranksV.length}`,
    );
  }
  if (numGroups === 0 || numKvHeads % numGroups !== 0) {
    throw new ArgumentError(
      `ranksK must have a number of groups that divides numKvHeads = ${numKvHeads}, got ${numGroups}`,
    );
  }
  for (const [name, list] of Object.entries({ ranksK, ranksV })) {
    for (const [g, rank] of list.entries()) {
      if (!Number.isInteger(rank) || rank < 1) {
        throw new ArgumentError(`${name}[${g}] must be an integer of at least 1, got ${rank}`);
      }
    }
  }
  const headsPerGroup = numKvHeads / numGroups;
  const queriesPerHead = numQHeads / numKvHeads;
  const table = new Int32Array(numKvHeads * latentTableWords);
  const outOffsets = new Int32Array(numQHeads);
  const at = { key: 0, keyScales: 0, up: 0, value: 0, valueScales: 0, out: 0, rankK: 0, rankV: 0 };
  for (let group = 0; group < numGroups; group++) {
    const [rankK, rankV] = [ranksK[group], ranksV[group]];
    for (let head = group * headsPerGroup; head < (group + 1) * headsPerGroup; head++) {
      table.set(
        [rankK, at.key, at.keyScales, at.up, rankV, at.value, at.valueScales, at.out, at.rankK, at.rankV],
        head * latentTableWords,
      );
      for (let h = 0; h < queriesPerHead; h++) outOffsets[head * queriesPerHead + h] = at.out + h * rankV;
      at.up += rankK * headDim;
      at.out += queriesPerHead * rankV;
    }
    at.key += rowElements(storage, rankK);
    at.keyScales += rowScales(storage, rankK);
    at.value += rowElements(valueStorage, rankV);
    at.valueScales += rowScales(valueStorage, rankV);
    at.rankK += rankK;
    at.rankV += rankV;
  }
  return {
    ranksK,
    ranksV,
    numGroups,
    keyRow: at.key,
    valueRow: at.value,
    keyScales: at.keyScales,
    valueScales: at.valueScales,
    keyRanks: at.rankK,
    valueRanks: at.rankV,
    upElements: at.up,
    outRow: at.out,
    outOffsets,
    table,
  };
}
