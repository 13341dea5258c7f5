/**
 * The forward pass of a decoder-only transformer, read top to bottom: embedding, layers of attention and gated MLP, final norm, logits.
 * What differs between families (norms, biases, windows, caps) is data in `ModelConfig`. Buffers and batches come from buffers.ts and cpuRunner.ts.
 */

import { recordAppendKv } from "../../ops/appendKv/index.ts";
import { type CpuAttentionPlan, recordAttention } from "../../ops/attention/index.ts";
import { recordEmbedding } from "../../ops/embedding/index.ts";
import { recordGatedActivation } from "../../ops/gatedActivation/index.ts";
import { recordGatherRows } from "../../ops/gatherRows/index.ts";
import { recordSoftCap } from "../../ops/logits/index.ts";
import { type PreparedActivations, recordMatmul } from "../../ops/matmul/index.ts";
import type { Recorder } from "../../ops/recorder.ts";
import { recordRmsNorm } from "../../ops/rmsNorm/index.ts";
import { recordRope } from "../../ops/rope/index.ts";
import type { ModelConfig } from "../config/index.ts";
import type { LayerPages, NetworkBuffers } from "./buffers.ts";
import type { RopeRows } from "./ropeRows.ts";
import type { LoadedWeights } from "./weights.ts";

/** Everything a forward pass reads and writes. */
export interface DecoderState {
  readonly config: ModelConfig;
  readonly weights: LoadedWeights;
  readonly buffers: NetworkBuffers;
  readonly pages: readonly LayerPages[];
  /** One for each layer; layers of the same window share one. */
  readonly plans: readonly CpuAttentionPlan[];
  /** One for each layer; layers of the same rotation share one. */
  readonly ropes: readonly RopeRows[];
}

/** A step's sizes. */
export interface StepSize {
  readonly numTokens: number;
  /** Rows whose logits are wanted. */
  readonly numLogits: number;
}

/** Records the whole network for the batch whose inputs are in the buffers; logits end in `buffers.logits`. */
export function recordDecoder(recorder: Recorder, state: DecoderState, size: StepSize): void {
  const { config, buffers } = state;
  const { numTokens, numLogits } = size;
  recordEmbedding(recorder, {
    table: matrix(state, "embedding"),
    tokenIds: buffers.tokenIds,
    out: buffers.hidden,
    numTokens,
    scale: config.embeddingScale,
  });
  for (let layer = 0; layer < config.numLayers; layer++) {
    recordAttentionBlock(recorder, state, layer, numTokens);
    recordMlpBlock(recorder, state, layer, numTokens);
  }
  if (numLogits === 0) return;
  recordGatherRows(recorder, {
    x: buffers.hidden,
    indices: buffers.logitsRows,
    out: buffers.gathered,
    columns: config.hiddenSize,
    numRows: numLogits,
  });
  recordNorm(recorder, state, "finalNorm", { x: buffers.gathered, out: buffers.gathered, numRows: numLogits });
  const output = matrix(state, config.tieWordEmbeddings ? "embedding" : "output");
  const prepared = buffers.outputActivations.record(recorder, buffers.gathered, numLogits);
  recordMatmul(recorder, {
    weight: output,
    activations: prepared[output.arithmetic],
    out: buffers.logits,
    numTokens: numLogits,
  });
  if (config.finalLogitSoftCap !== null) {
    const logits = { pointer: buffers.logits, shape: [numLogits, config.vocabSize], type: "f32" } as const;
    recordSoftCap(recorder, { logits, cap: config.finalLogitSoftCap });
  }
}

function recordAttentionBlock(recorder: Recorder, state: DecoderState, layer: number, numTokens: number): void {
  const { config, buffers } = state;
  const { numAttentionHeads, numKvHeads, headDim } = config;
  const name = (part: string): string => `layers.${layer}.attention.${part}`;
  recordNorm(recorder, state, `layers.${layer}.attentionNorm`, {
    x: buffers.hidden,
    out: buffers.normed,
    numRows: numTokens,
  });
  const input = buffers.hiddenActivations.record(recorder, buffers.normed, numTokens);
  recordLinear(recorder, state, name("q"), input, { out: buffers.q, numTokens }, { overlap: true });
  recordLinear(recorder, state, name("k"), input, { out: buffers.k, numTokens }, { overlap: true });
  recordLinear(recorder, state, name("v"), input, { out: buffers.v, numTokens });
  if (config.hasQkNorm) {
    recordHeadNorm(recorder, state, name("qNorm"), buffers.q, numTokens, numAttentionHeads);
    recordHeadNorm(recorder, state, name("kNorm"), buffers.k, numTokens, numKvHeads);
  }
  const rope = state.ropes[layer];
  const rotation = { positions: buffers.rotationRows(rope), table: rope.pointer, numRows: numTokens };
  recordRope(recorder, rope.spec, { ...rotation, x: buffers.q, numHeads: numAttentionHeads, overlap: true });
  recordRope(recorder, rope.spec, { ...rotation, x: buffers.k, numHeads: numKvHeads });
  const pages = state.pages[layer];
  recordAppendKv(
    recorder,
    { numKvHeads, headDim, storage: pages.k.type },
    {
      k: { pointer: buffers.k, shape: [numTokens, numKvHeads, headDim], type: "f32" },
      v: { pointer: buffers.v, shape: [numTokens, numKvHeads, headDim], type: "f32" },
      kPages: pages.k,
      vPages: pages.v,
      slotMapping: { pointer: buffers.slotMapping, shape: [numTokens], type: "i32" },
    },
  );
  recordAttention(recorder, state.plans[layer], {
    q: buffers.q,
    kPages: pages.k.pointer,
    vPages: pages.v.pointer,
    kStrides: pages.strides,
    vStrides: pages.strides,
    out: buffers.attended,
  });
  const attended = buffers.attendedActivations.record(recorder, buffers.attended, numTokens);
  recordResidual(recorder, state, name("o"), attended, numTokens, `layers.${layer}.postAttentionNorm`);
}

function recordMlpBlock(recorder: Recorder, state: DecoderState, layer: number, numTokens: number): void {
  const { config, buffers } = state;
  const name = (part: string): string => `layers.${layer}.mlp.${part}`;
  recordNorm(recorder, state, `layers.${layer}.mlpNorm`, {
    x: buffers.hidden,
    out: buffers.normed,
    numRows: numTokens,
  });
  const input = buffers.hiddenActivations.record(recorder, buffers.normed, numTokens);
  recordLinear(recorder, state, name("gate"), input, { out: buffers.gate, numTokens }, { overlap: true });
  recordLinear(recorder, state, name("up"), input, { out: buffers.up, numTokens });
  const rows = (pointer: number) => ({ pointer, shape: [numTokens, config.intermediateSize], type: "f32" }) as const;
  recordGatedActivation(
    recorder,
    { activation: config.activation },
    { gate: rows(buffers.gate), up: rows(buffers.up), out: rows(buffers.gate) },
  );
  const activated = buffers.activatedActivations.record(recorder, buffers.gate, numTokens);
  recordResidual(recorder, state, name("down"), activated, numTokens, `layers.${layer}.postMlpNorm`);
}

/** Projects a block's result and adds it to the hidden state, through a norm in between where the family has one. */
function recordResidual(
  recorder: Recorder,
  state: DecoderState,
  projection: string,
  input: PreparedActivations,
  numTokens: number,
  postNorm: string,
): void {
  const { config, buffers } = state;
  if (config.normLayout === "pre") {
    recordLinear(recorder, state, projection, input, { out: buffers.hidden, numTokens, accumulate: true });
    return;
  }
  recordLinear(recorder, state, projection, input, { out: buffers.normed, numTokens });
  recordNorm(recorder, state, postNorm, {
    x: buffers.normed,
    out: buffers.hidden,
    residual: buffers.hidden,
    numRows: numTokens,
  });
}

function recordLinear(
  recorder: Recorder,
  state: DecoderState,
  name: string,
  input: PreparedActivations,
  output: { readonly out: number; readonly numTokens: number; readonly accumulate?: boolean },
  options: { readonly overlap?: boolean } = {},
): void {
  const weight = matrix(state, name);
  const bias = state.weights.vectors.get(`${name}Bias`)?.pointer;
  recordMatmul(recorder, { ...output, weight, activations: input[weight.arithmetic], bias }, options);
}

function recordNorm(
  recorder: Recorder,
  { config, weights }: DecoderState,
  name: string,
  args: { readonly x: number; readonly out: number; readonly residual?: number; readonly numRows: number },
): void {
  const { rmsNormEps: eps, rmsNormWeightOffset: weightOffset, hiddenSize: dim } = config;
  const rows = (pointer: number) => ({ pointer, shape: [args.numRows, dim], type: "f32" }) as const;
  recordRmsNorm(
    recorder,
    { dim, eps, weightOffset, residual: args.residual === undefined ? "none" : "add" },
    {
      x: rows(args.x),
      weight: vector(weights, name),
      out: rows(args.out),
      ...(args.residual === undefined ? {} : { residual: rows(args.residual) }),
    },
  );
}

function recordHeadNorm(
  recorder: Recorder,
  { config, weights }: DecoderState,
  name: string,
  x: number,
  numTokens: number,
  numHeads: number,
): void {
  const { rmsNormEps: eps, rmsNormWeightOffset: weightOffset, headDim: dim } = config;
  const rows = { pointer: x, shape: [numTokens, numHeads * dim], type: "f32" } as const;
  recordRmsNorm(
    recorder,
    { dim, eps, weightOffset, residual: "none", numHeads },
    { x: rows, weight: vector(weights, name), out: rows },
  );
}

function matrix({ weights }: DecoderState, name: string) {
  const weight = weights.matrices.get(name);
  if (weight === undefined) throw new Error(`no weight matrix ${name} was loaded`);
  return weight;
}

function vector(weights: LoadedWeights, name: string) {
  const found = weights.vectors.get(name);
  if (found === undefined) throw new Error(`no vector ${name} was loaded`);
  return { pointer: found.pointer, shape: [found.length], type: "f32" } as const;
}
