/** Palu: keys and values of a trained model to low rank. Only re-exports. */

export { type DecomposeOptions, decompose, type LowRankGroup } from "./decompose.ts";
export { type FoundRanks, type RankSearch, searchRanks } from "./rankSearch.ts";
export { type Whitening, whiten } from "./whitening.ts";
