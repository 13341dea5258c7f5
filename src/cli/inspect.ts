/** `kvasir inspect`: what a model is, read from its files' headers alone; no weight is loaded. */

import { basename } from "node:path";
import { type ModelConfig, openModel } from "../models/config/index.ts";
import { locate } from "../models/formats/file.node.ts";
import type { TensorEntry } from "../models/formats/index.ts";
import { cacheBytesPerToken } from "../models/network/buffers.ts";
import { formatShape, numElements } from "../tensor/index.ts";
import { defineCommand, jsonOption, modelOption, modelWord } from "./defineCommand.ts";
import { UsageError } from "./exit.ts";
import { formatBytes, formatCount, formatInteger, formatTable } from "./figures.ts";
import { splitModel } from "./modelWords.ts";
import { ProgressLine } from "./progressLine.ts";
import { resolveModel } from "./resolveModel.ts";

export const inspect = defineCommand({
  name: "inspect",
  description: "architecture, tensors, bytes and cache bytes per token, without loading the weights",
  options: {
    MODEL: modelWord,
    model: modelOption,
    json: jsonOption,
    tensors: { type: "boolean", description: "list every tensor" },
  },
  async run(args, signal) {
    const { model, rest } = splitModel(args._, args.model as string | undefined);
    if (rest.length > 0) throw new UsageError(`inspect takes one model, got "${rest[0]}"`);
    const progress = new ProgressLine();
    const path = await resolveModel(model, { signal, onProgress: (state) => progress.show(state) });
    progress.clear();
    const { folder, fileName } = await locate(path);
    const { config, weights } = await openModel(folder, fileName);
    try {
      const tensors = [...weights.tensors.values()];
      const facts = describeFacts(path, config, weights.format, weights.numBytes, tensors);
      if (args.json === true)
        console.log(JSON.stringify({ ...facts, tensors: tensors.map(plainTensor) }, undefined, 2));
      else printFacts(facts, config, args.tensors === true ? tensors : []);
    } finally {
      await weights.close();
    }
  },
});

/** What is known of a model without loading it; printed as it is with `--json`. */
interface ModelFacts {
  readonly model: string;
  readonly format: string;
  readonly architecture: string;
  readonly numParameters: number;
  readonly fileBytes: number;
  readonly numLayers: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numAttentionHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly contextLength: number;
  /** With the default f16 pages. */
  readonly cacheBytesPerToken: number;
  /** By type of weight: how many tensors, elements and bytes. */
  readonly weights: readonly {
    readonly type: string;
    readonly numTensors: number;
    readonly numElements: number;
    readonly numBytes: number;
  }[];
}

function describeFacts(
  model: string,
  config: ModelConfig,
  format: string,
  fileBytes: number,
  tensors: readonly TensorEntry[],
): ModelFacts {
  const weights = [...Map.groupBy(tensors, ({ type }) => type)].map(([type, own]) => ({
    type,
    numTensors: own.length,
    numElements: own.reduce((sum, { shape }) => sum + numElements(shape), 0),
    numBytes: own.reduce((sum, { numBytes }) => sum + numBytes, 0),
  }));
  return {
    model,
    format,
    architecture: config.family,
    numParameters: weights.reduce((sum, own) => sum + own.numElements, 0),
    fileBytes,
    numLayers: config.numLayers,
    hiddenSize: config.hiddenSize,
    intermediateSize: config.intermediateSize,
    numAttentionHeads: config.numAttentionHeads,
    numKvHeads: config.numKvHeads,
    headDim: config.headDim,
    vocabSize: config.vocabSize,
    contextLength: config.maxPositionEmbeddings,
    cacheBytesPerToken: cacheBytesPerToken(config, "f16"),
    weights: weights.sort((a, b) => b.numBytes - a.numBytes),
  };
}

function plainTensor({ name, shape, type, numBytes, byteOffset }: TensorEntry): object {
  return { name, shape, type, numBytes, byteOffset };
}

function printFacts(facts: ModelFacts, config: ModelConfig, tensors: readonly TensorEntry[]): void {
  const windows = new Set(config.layers.map(({ slidingWindow }) => slidingWindow).filter((window) => window !== null));
  const numWindowed = config.layers.filter(({ slidingWindow }) => slidingWindow !== null).length;
  const ropes = new Set(
    config.layers.map(
      ({ rope }) =>
        `base ${formatInteger(rope.theta)}${rope.scaling.type === "default" ? "" : `, ${rope.scaling.type}`}`,
    ),
  );
  const lines: [string, string][] = [
    ["model", basename(facts.model)],
    ["file", `${facts.format}, ${formatBytes(facts.fileBytes)}`],
    ["architecture", facts.architecture],
    [
      "parameters",
      `${formatCount(facts.numParameters)}${config.tieWordEmbeddings ? ", output tied to the embedding" : ""}`,
    ],
    [
      "layers",
      `${facts.numLayers} of hidden size ${formatInteger(facts.hiddenSize)}, MLP ${formatInteger(facts.intermediateSize)} (${config.activation})`,
    ],
    ["attention", `${facts.numAttentionHeads} query and ${facts.numKvHeads} key/value heads of ${facts.headDim}`],
    ...(windows.size > 0
      ? [
          ["windows", `${[...windows].join(", ")} tokens in ${numWindowed} of ${facts.numLayers} layers`] as [
            string,
            string,
          ],
        ]
      : []),
    ["rope", [...ropes].join(" and ")],
    ["context", `${formatInteger(facts.contextLength)} tokens`],
    ["vocabulary", formatInteger(facts.vocabSize)],
    [
      "cache",
      `${formatBytes(facts.cacheBytesPerToken)} per token in f16, ${formatBytes(cacheBytesPerToken(config, "f32"))} in f32`,
    ],
  ];
  for (const [name, value] of lines) console.log(`${name.padEnd(14)}${value}`);
  const rows = facts.weights.map((own) => [
    own.type,
    formatInteger(own.numTensors),
    formatCount(own.numElements),
    formatBytes(own.numBytes),
  ]);
  console.log(`\n${formatTable([["weights", "tensors", "elements", "bytes"], ...rows])}`);
  if (tensors.length === 0) return;
  const listed = tensors.map(({ name, type, shape, numBytes }) => [
    name,
    type,
    formatShape(shape),
    formatBytes(numBytes),
  ]);
  console.log(`\n${formatTable([["tensor", "type", "shape", "bytes"], ...listed])}`);
}
