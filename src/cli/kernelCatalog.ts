/** Every kernel of the project with a spec to look at it by: a layer of the bundled model, or one like it. */

import {
  KernelBuilder,
  type KernelDefinition,
  type KernelTree,
  type ParameterTypes,
  wasmTarget,
} from "../kernels/index.ts";
import { appendKvKernel } from "../ops/appendKv/index.ts";
import { storeLatentsKernel } from "../ops/appendLatent/index.ts";
import { attentionKernel, attentionMergeKernel } from "../ops/attention/index.ts";
import { kvCacheUpdateKernel } from "../ops/cacheUpdate/index.ts";
import { copyHeadsKernel } from "../ops/copyHeads/index.ts";
import { copyPagesKernel } from "../ops/copyPages/index.ts";
import { elementwiseKernel } from "../ops/elementwise/index.ts";
import { embeddingKernel } from "../ops/embedding/cpu.ts";
import { gatedActivationKernel } from "../ops/gatedActivation/index.ts";
import { gatherRowsKernel } from "../ops/gatherRows/cpu.ts";
import { gatherSlotsKernel } from "../ops/gatherSlots/index.ts";
import { hadamardKernel } from "../ops/hadamard/index.ts";
import { absorbHeadsKernel, absorbManyKernel, expandHeadsKernel } from "../ops/headProjection/index.ts";
import { chunkStatisticsKernel, mergeStatisticsKernel } from "../ops/logits/rowStatistics.ts";
import { softCapKernel } from "../ops/logits/softCap.ts";
import { chunkCandidatesKernel, mergeCandidatesKernel } from "../ops/logits/topCandidates.ts";
import { quantizeActivations } from "../ops/matmul/activations.ts";
import { f32Expanded } from "../ops/matmul/f32Kernels.ts";
import { integerDirect, integerExpanded } from "../ops/matmul/integerKernels.ts";
import type { MatmulSpec } from "../ops/matmul/kernelParts.ts";
import { packPanels } from "../ops/matmul/pack.ts";
import { applySinksKernel, mergeStatesKernel } from "../ops/mergeStates/index.ts";
import { rmsNormKernel } from "../ops/rmsNorm/index.ts";
import { ropeKernel } from "../ops/rope/index.ts";

/** A kernel that can be looked at. */
export interface CatalogEntry {
  readonly name: string;
  /** The spec that is taken when none is given. */
  readonly example: object;
  /** The tree for `example` with the fields of `changes` in place of its own. Throws what the kernel throws for a spec it cannot build. */
  tree(changes: object): KernelTree;
}

function entry<Spec extends object, P extends ParameterTypes>(
  definition: KernelDefinition<Spec, P>,
  example: Spec,
): CatalogEntry {
  return {
    name: definition.name,
    example,
    tree: (changes) => KernelBuilder.tree(definition, { ...example, ...changes }, wasmTarget),
  };
}

const attention = {
  headDim: 32,
  numQHeads: 8,
  numKvHeads: 2,
  pageSize: 16,
  storage: "f16",
  causal: true,
  smScale: 32 ** -0.5,
} as const;
const matmul = {
  arithmetic: "i8",
  columns: 256,
  tokens: 1,
  panels: 4,
  hasBias: false,
  accumulate: false,
} as const satisfies Omit<MatmulSpec, "type">;

/** In the order in which a layer runs them. */
export const kernelCatalog: readonly CatalogEntry[] = [
  entry(embeddingKernel, { type: "Q8_0", columns: 256 }),
  entry(rmsNormKernel, { dim: 256, eps: 1e-5, weightOffset: 0, residual: "none" }),
  entry(quantizeActivations, { arithmetic: "i8", columns: 256 }),
  entry(integerDirect, { ...matmul, type: "Q4_K" }),
  entry(integerExpanded, { ...matmul, type: "Q4_K", tokens: 4 }),
  entry(f32Expanded, { ...matmul, type: "Q8_0", arithmetic: "f32", tokens: 4 }),
  entry(packPanels, { type: "Q8_0", columns: 256 }),
  entry(ropeKernel, { headDim: 32, rotaryDim: 32, style: "interleaved" }),
  entry(appendKvKernel, { numKvHeads: 2, headDim: 32, storage: "f16" }),
  entry(kvCacheUpdateKernel, { numHeads: 4, headDim: 32, storage: "f16" }),
  entry(storeLatentsKernel, {
    storage: { kind: "grouped", bits: 4, groupSize: 32 },
    source: "f32",
    entries: "slots",
  }),
  entry(attentionKernel, attention),
  entry(attentionMergeKernel, attention),
  entry(absorbHeadsKernel, { rows: 128, columns: 512 }),
  entry(absorbManyKernel, { rows: 128, columns: 512 }),
  entry(expandHeadsKernel, { rows: 128, columns: 512 }),
  entry(gatherSlotsKernel, { channels: 512, pageSize: 64, storage: "bf16" }),
  entry(copyHeadsKernel, { channels: 64 }),
  entry(mergeStatesKernel, { headDim: 32, hasMask: false }),
  entry(applySinksKernel, { headDim: 32 }),
  entry(copyPagesKernel, {}),
  entry(hadamardKernel, { factor: 12, doublings: 3 }),
  entry(gatedActivationKernel, { activation: "silu" }),
  entry(elementwiseKernel, { operation: "add" }),
  entry(gatherRowsKernel, { columns: 256 }),
  entry(softCapKernel, {}),
  entry(chunkStatisticsKernel, { withLogSumExp: true }),
  entry(mergeStatisticsKernel, { withLogSumExp: true }),
  entry(chunkCandidatesKernel, { numCandidates: 8 }),
  entry(mergeCandidatesKernel, { numCandidates: 8 }),
];
