/**
 * How many of a model's low-rank channels each group gets, under a budget for all: the search of the Palu repository, with its numbers.
 * Source: Chang et al. 2024 (arXiv 2407.21118), rank_search.py.
 *
 * Projections ("modules") are in order: keys of layer 0, values of layer 0, keys of layer 1, and so on.
 */
import { ArgumentError } from "../../tensor/index.ts";

interface RankBudget {
  readonly numKvHeads: number;
  readonly headDim: number;
  /** Neighbouring key/value heads that share one latent: divides numKvHeads. */
  readonly headGroupSize: number;
  /** Part of all channels to keep: above 0, at most 1. */
  readonly paramRatioTarget: number;
  /** Ranks are rounded to multiples of this, halves to the even multiple, and are at least this; 32 by default. */
  readonly blockSize?: number;
}

/**
 * - uniform: the same for every group.
 * - fisher: in proportion to the Fisher information of each group, `fisher` [modules][groups].
 * - fisher_uniform: in proportion to that of each module, `fisher` [modules], and split evenly over its groups.
 */
export type RankSearch = RankBudget &
  (
    | { readonly method: "uniform"; readonly numModules: number }
    | { readonly method: "fisher"; readonly fisher: readonly (readonly number[])[] }
    | { readonly method: "fisher_uniform"; readonly fisher: readonly number[] }
  );

export interface FoundRanks {
  /**
   * [modules][groups]. Rounding may take one above headGroupSize * headDim, as the original does; whoever decomposes takes the smaller of
   * the two.
   */
  readonly ranks: readonly (readonly number[])[];
  /** Before rounding and, with fisher_uniform, before the split: [modules][groups], or [modules][1]. */
  readonly beforeRounding: readonly (readonly number[])[];
  /** Channels of all keys and values. */
  readonly totalRank: number;
  /** What was to be spent: totalRank * paramRatioTarget. */
  readonly target: number;
  /** What the ranks add up to. */
  readonly rankSum: number;
  /** rankSum / target - 1: what rounding spent too much, or too little. */
  readonly deviation: number;
}

/** Throws ArgumentError if a size, the budget or the Fisher information is out of range. */
export function searchRanks(search: RankSearch): FoundRanks {
  validate(search);
  const { numKvHeads, headDim, headGroupSize, paramRatioTarget, blockSize = 32 } = search;
  const numGroups = numKvHeads / headGroupSize;
  const groupDim = headGroupSize * headDim;
  const numModules = search.method === "uniform" ? search.numModules : search.fisher.length;
  const totalRank = numModules * numKvHeads * headDim;
  const target = totalRank * paramRatioTarget;
  const beforeRounding = spread();
  const perGroup =
    search.method === "fisher_uniform"
      ? beforeRounding.map(([rank]) => Array<number>(numGroups).fill(Math.floor(rank / numGroups)))
      : beforeRounding;
  const ranks = perGroup.map((module) => module.map((rank) => toBlocks(rank, blockSize)));
  const rankSum = sum(ranks.map(sum));
  return { ranks, beforeRounding, totalRank, target, rankSum, deviation: rankSum / target - 1 };

  function spread(): number[][] {
    switch (search.method) {
      case "uniform":
        return Array.from({ length: numModules }, () => Array<number>(numGroups).fill(groupDim * paramRatioTarget));
      case "fisher":
        return distribute(search.fisher, groupDim, target);
      case "fisher_uniform":
        return distribute(
          search.fisher.map((information) => [information]),
          numKvHeads * headDim,
          target,
        );
    }
  }
}

/** One group, and what it has so far of its share of the budget. */
interface Holder {
  readonly share: number;
  rank: number;
}

/**
 * Whole parts of the shares first, none above `dim`; what is left goes round, one to each group that is not full, smallest deficit first in
 * an order that stays. A round ends early only when exactly nothing is left: a fractional budget is overdrawn by the last round.
 */
function distribute(fisher: readonly (readonly number[])[], dim: number, target: number): number[][] {
  const information = sum(fisher.map(sum));
  const holders = fisher.map((module) =>
    module.map((value): Holder => {
      const share = (target * value) / information;
      return { share, rank: Math.min(dim, Math.floor(share)) };
    }),
  );
  const inOrder = holders.flat().sort((a, b) => a.share - a.rank - (b.share - b.rank));
  let left = target - sum(inOrder.map(({ rank }) => rank));
  while (left > 0) {
    for (const holder of inOrder) {
      if (holder.rank === dim) continue;
      holder.rank++;
      left--;
      if (left === 0) break;
    }
  }
  return holders.map((module) => module.map(({ rank }) => rank));
}

/** A multiple of the block size, at least one; Python's round, which takes halves to the even neighbour. */
function toBlocks(rank: number, blockSize: number): number {
  const blocks = rank / blockSize;
  const below = Math.floor(blocks);
  const rounded = blocks - below === 0.5 ? below + (below % 2) : Math.round(blocks);
  return Math.max(1, rounded) * blockSize;
}

function sum(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

function validate(search: RankSearch): void {
  const { numKvHeads, headDim, headGroupSize, paramRatioTarget, blockSize = 32 } = search;
  for (const [name, value] of Object.entries({ numKvHeads, headDim, headGroupSize, blockSize })) {
    if (!Number.isInteger(value) || value < 1)
      throw new ArgumentError(`${name} must be a positive integer, got ${value}`);
  }
  if (numKvHeads % headGroupSize !== 0) {
    throw new ArgumentError(`headGroupSize must divide numKvHeads = ${numKvHeads}, got ${headGroupSize}`);
  }
  if (!(paramRatioTarget > 0 && paramRatioTarget <= 1)) {
    throw new ArgumentError(`paramRatioTarget must be above 0 and at most 1, got ${paramRatioTarget}`);
  }
  if (search.method === "uniform") {
    if (Number.isInteger(search.numModules) && search.numModules > 0) return;
    throw new ArgumentError(`numModules must be a positive integer, got ${search.numModules}`);
  }
  const groups = numKvHeads / headGroupSize;
  if (search.method === "fisher") {
    const wrong = search.fisher.findIndex((module) => module.length !== groups);
    if (wrong >= 0) {
      throw new ArgumentError(`fisher[${wrong}] must have ${groups} groups, got ${search.fisher[wrong].length}`);
    }
  }
  const values: readonly number[] = search.fisher.flat();
  const bad = values.find((value) => !(value >= 0 && value < Infinity));
  if (bad !== undefined) throw new ArgumentError(`fisher must be finite and not negative, got ${bad}`);
  if (!values.some((value) => value > 0)) throw new ArgumentError("fisher must have a value above 0");
}
