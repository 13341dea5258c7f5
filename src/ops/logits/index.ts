/** Soft cap, row statistics and candidates of logits: contract, references, and the functions that record them. */
export {
  MAX_CANDIDATES,
  type RowStatisticsArgs,
  type RowStatisticsSpec,
  rowStatisticsWords,
  type SoftCapArgs,
  type TopCandidatesArgs,
  type TopCandidatesSpec,
  topCandidatesWords,
} from "./contract.ts";
export { type Candidate, type RowStatistics, rowStatistics, softCap, topCandidates } from "./reference.ts";
export { recordRowStatistics } from "./rowStatistics.ts";
export { recordSoftCap } from "./softCap.ts";
export { recordTopCandidates } from "./topCandidates.ts";
