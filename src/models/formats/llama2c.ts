/**
 * Checkpoints of llama2.c, version 0: seven integers, then float32 matrices, those of all layers together. The tensors get Kvasir's own names;
 * the tokenizer file beside it is src/models/tokenizer's. Format: karpathy/llama2.c, export.py (legacy_export).
 */

import { FormatError } from "../../tensor/index.ts";
import type { ByteSource } from "./byteSource.ts";
import type { TensorEntry, WeightsFile } from "./weightsFile.ts";

const HEADER_FIELDS = ["dim", "hiddenDim", "numLayers", "numHeads", "numKvHeads", "vocabSize", "maxSeqLen"] as const;
const HEADER_BYTES = 4 * HEADER_FIELDS.length;
const MAX_FIELD = 2 ** 24;

/** The header: sizes as llama2.c names them. */
type Llama2cHeader = Readonly<Record<(typeof HEADER_FIELDS)[number], number>> & {
  /** The output matrix is the embedding (the file says so by a positive vocabulary size). */
  readonly isTied: boolean;
};

/** Opens a llama2.c checkpoint. Its metadata are the header's fields as `llama2c.dim` and so on. Throws FormatError with the field at fault. */
export async function openLlama2c(source: ByteSource): Promise<WeightsFile> {
  try {
    const header = await readHeader(source);
    const { tensors, end } = placeTensors(source, header);
    if (end !== source.size) {
      throw new FormatError(
        `${source.label} has ${source.size} bytes, but its header ${JSON.stringify(header)} asks for ${end}`,
      );
    }
    return {
      format: "llama2c",
      label: source.label,
      metadata: new Map(Object.entries(header).map(([field, value]) => [`llama2c.${field}`, value])),
      tensors,
      numBytes: source.size,
      close: () => source.close(),
    };
  } catch (error) {
    await source.close();
    throw error;
  }
}

async function readHeader(source: ByteSource): Promise<Llama2cHeader> {
  const bytes = await source.read(0, HEADER_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [dim, hiddenDim, numLayers, numHeads, numKvHeads, signedVocabSize, maxSeqLen] = HEADER_FIELDS.map((_, i) =>
    view.getInt32(4 * i, true),
  );
  const isTied = signedVocabSize > 0;
  const header = {
    dim,
    hiddenDim,
    numLayers,
    numHeads,
    numKvHeads,
    vocabSize: Math.abs(signedVocabSize),
    maxSeqLen,
    isTied,
  };
  for (const field of HEADER_FIELDS) {
    const value = header[field];
    if (value < 1 || value > MAX_FIELD) {
      throw new FormatError(`${source.label}: ${field} is ${value}: a llama2.c header has 1 to ${MAX_FIELD} there`);
    }
  }
  if (dim % numHeads !== 0 || (dim / numHeads) % 2 !== 0) {
    throw new FormatError(`${source.label}: dim = ${dim} must be numHeads = ${numHeads} times an even number`);
  }
  if (numHeads % numKvHeads !== 0) {
    throw new FormatError(`${source.label}: numHeads = ${numHeads} must be a multiple of numKvHeads = ${numKvHeads}`);
  }
  return header;
}

function placeTensors(source: ByteSource, header: Llama2cHeader): { tensors: Map<string, TensorEntry>; end: number } {
  const { dim, hiddenDim, numLayers, numHeads, numKvHeads, vocabSize, maxSeqLen } = header;
  const headDim = dim / numHeads;
  const kvDim = numKvHeads * headDim;
  const tensors = new Map<string, TensorEntry>();
  let at = HEADER_BYTES;

  const add = (name: string, ...shape: number[]): void => {
    const numBytes = 4 * shape.reduce((product, size) => product * size, 1);
    tensors.set(name, { name, shape, type: "F32", source, byteOffset: at, numBytes });
    at += numBytes;
    // Also ends an absurd number of layers early.
    if (at > source.size)
      throw new FormatError(`${source.label}: tensor ${name} ends at byte ${at}, but the file has ${source.size}`);
  };
  const addLayers = (name: string, ...shape: number[]): void => {
    for (let layer = 0; layer < numLayers; layer++) add(`layers.${layer}.${name}`, ...shape);
  };

  add("embedding", vocabSize, dim);
  addLayers("attentionNorm", dim);
  addLayers("attention.q", dim, dim);
  addLayers("attention.k", kvDim, dim);
  addLayers("attention.v", kvDim, dim);
  addLayers("attention.o", dim, dim);
  addLayers("mlpNorm", dim);
  addLayers("mlp.gate", hiddenDim, dim);
  addLayers("mlp.down", dim, hiddenDim);
  addLayers("mlp.up", hiddenDim, dim);
  add("finalNorm", dim);
  at += 4 * maxSeqLen * headDim; // two tables of cosines and sines, which nobody reads
  if (!header.isTied) add("output", vocabSize, dim);
  return { tensors, end: at };
}
