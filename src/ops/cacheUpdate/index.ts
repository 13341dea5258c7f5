/** Updates of a paged cache: slices and single tokens, and which slots the tokens of a step go to. */
export { checkSlices, type KvCacheUpdateArgs, type KvCacheUpdateSpec } from "./contract.ts";
export {
  kvCacheUpdateKernel,
  type ReshapeAndCacheArgs,
  recordKvCacheUpdate,
  recordReshapeAndCache,
} from "./cpu.ts";
export { kvCacheUpdate } from "./reference.ts";
export { getBatchIndicesPositions, getSeqLens, slotMappingOf, type TokenPlaces } from "./slots.ts";
