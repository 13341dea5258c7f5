/** Small models with random weights, in memory, for tests: checkpoints of every family, and a GGUF file of all quantised types. */

import { readFileSync } from "node:fs";
import { bytesSource, type JsonObject, type SourceFolder } from "../../src/models/formats/index.ts";
import { bf16FromF32, type WeightType, weightBytes } from "../../src/tensor/index.ts";
import { randomWeights, uniform } from "../matmul/weights.ts";
import { buildGguf } from "./buildGguf.ts";

/** The families whose configs and tensor lists are among the fixtures. */
export type Checkpoint =
  | "llama_gqa"
  | "llama_rope3"
  | "llama_mqa"
  | "mistral_window"
  | "qwen2"
  | "qwen2_yarn"
  | "qwen3"
  | "gemma2"
  | "gemma3"
  | "phi3_longrope";

const fixtures = new URL("../fixtures/formats/hf/", import.meta.url);

/** Files in memory; `numOpen` counts what was opened and not closed. */
export interface CountingFolder extends SourceFolder {
  readonly numOpen: () => number;
}

export function memoryFolder(files: Readonly<Record<string, Uint8Array>>): CountingFolder {
  let numOpen = 0;
  return {
    label: "models",
    names: Object.keys(files).sort(),
    numOpen: () => numOpen,
    async open(name) {
      numOpen++;
      const source = bytesSource(name, files[name]);
      let isOpen = true;
      return {
        ...source,
        async close() {
          if (isOpen) numOpen--;
          isOpen = false;
        },
      };
    },
  };
}

export interface CheckpointEdits {
  readonly config?: JsonObject;
  /** Changes the list of tensors before the file is written. */
  readonly tensors?: (tensors: Map<string, readonly number[]>) => void;
}

/** The files of a checkpoint in BF16, its shapes those that transformers wrote. */
export function checkpointFiles(name: Checkpoint, edits: CheckpointEdits = {}): Record<string, Uint8Array> {
  const read = (file: string): JsonObject => JSON.parse(readFileSync(new URL(`${name}/${file}`, fixtures), "utf8"));
  const tensors = new Map(
    Object.entries(read("tensors.json") as Record<string, { shape: number[] }>).map(([key, { shape }]) => [key, shape]),
  );
  edits.tensors?.(tensors as Map<string, readonly number[]>);
  return {
    "config.json": new TextEncoder().encode(JSON.stringify({ ...read("config.json"), ...edits.config })),
    "model.safetensors": writeSafetensors(tensors),
  };
}

/** Matrices keep the size of a row's elements at 1; norm weights are around 1 (around 0 where the model adds 1). */
function writeSafetensors(tensors: ReadonlyMap<string, readonly number[]>): Uint8Array {
  const header: Record<string, object> = {};
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const [index, [name, shape]] of [...tensors].entries()) {
    const random = uniform(index + 1);
    const size = shape.reduce((a, b) => a * b, 1);
    const spread = shape.length === 1 ? 0.2 : Math.sqrt(12 / shape[shape.length - 1]);
    const middle = /norm/.test(name) ? 1 : 0;
    const values = Float32Array.from({ length: size }, () => middle + (random() - 0.5) * spread);
    const bytes = new Uint8Array(bf16FromF32(values).buffer);
    header[name] = { dtype: "BF16", shape, data_offsets: [offset, offset + bytes.length] };
    parts.push(bytes);
    offset += bytes.length;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const file = new Uint8Array(8 + text.length + offset);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  let at = 8 + text.length;
  for (const part of parts) {
    file.set(part, at);
    at += part.length;
  }
  return file;
}

const typeNumbers: Partial<Record<WeightType, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q5_0: 6,
  Q5_1: 7,
  Q8_0: 8,
  Q2_K: 10,
  Q3_K: 11,
  Q4_K: 12,
  Q5_K: 13,
  Q6_K: 14,
  IQ4_NL: 20,
  IQ4_XS: 23,
};

/** Types of the matrices of the two layers: every quantised one, the mildest for queries and keys so that attention stays spread out. */
const layerTypes: readonly Readonly<Record<string, WeightType>>[] = [
  {
    attn_q: "Q4_0",
    attn_k: "Q5_0",
    attn_v: "Q6_K",
    attn_output: "Q4_K",
    ffn_gate: "Q4_K",
    ffn_up: "Q5_K",
    ffn_down: "Q6_K",
  },
  {
    attn_q: "Q4_1",
    attn_k: "IQ4_NL",
    attn_v: "Q5_1",
    attn_output: "Q3_K",
    ffn_gate: "Q2_K",
    ffn_up: "IQ4_XS",
    ffn_down: "Q8_0",
  },
];

/** A llama of two layers, hidden size 256, 4 query and 2 key/value heads of 64, 96 tokens. */
export function quantizedGguf(): Uint8Array {
  const [hidden, feedForward, vocab] = [256, 512, 96];
  const shapes: Record<string, readonly [number, number]> = {
    attn_q: [hidden, hidden],
    attn_k: [hidden / 2, hidden],
    attn_v: [hidden / 2, hidden],
    attn_output: [hidden, hidden],
    ffn_gate: [feedForward, hidden],
    ffn_up: [feedForward, hidden],
    ffn_down: [hidden, feedForward],
  };
  const listed: { name: string; shape: readonly number[]; type: WeightType }[] = [
    { name: "token_embd.weight", shape: [vocab, hidden], type: "Q6_K" },
    { name: "output_norm.weight", shape: [hidden], type: "F32" },
    { name: "output.weight", shape: [vocab, hidden], type: "Q8_0" },
    ...layerTypes.flatMap((types, layer) => [
      { name: `blk.${layer}.attn_norm.weight`, shape: [hidden], type: "F32" as const },
      { name: `blk.${layer}.ffn_norm.weight`, shape: [hidden], type: "F32" as const },
      ...Object.entries(types).map(([part, type]) => ({
        name: `blk.${layer}.${part}.weight`,
        shape: shapes[part],
        type,
      })),
    ]),
  ];
  let dataBytes = 0;
  const tensors = listed.map(({ name, shape, type }, index) => {
    const numElements = shape.reduce((a, b) => a * b, 1);
    const typeNumber = typeNumbers[type];
    if (typeNumber === undefined) throw new Error(`GGUF number of ${type} is missing here`);
    const tensor = { name, shape, typeNumber, offset: dataBytes, bytes: randomWeights(type, numElements, index + 1) };
    dataBytes += Math.ceil(weightBytes(type, numElements) / 32) * 32;
    return tensor;
  });
  const file = buildGguf({
    metadata: {
      "general.architecture": { type: "string", value: "llama" },
      "llama.embedding_length": { type: "u32", value: hidden },
      "llama.feed_forward_length": { type: "u32", value: feedForward },
      "llama.block_count": { type: "u32", value: layerTypes.length },
      "llama.attention.head_count": { type: "u32", value: 4 },
      "llama.attention.head_count_kv": { type: "u32", value: 2 },
      "llama.context_length": { type: "u32", value: 512 },
      "llama.attention.layer_norm_rms_epsilon": { type: "f32", value: 1e-5 },
    },
    tensors,
    dataBytes,
  });
  for (const { offset, bytes } of tensors) file.set(bytes, file.length - dataBytes + offset);
  return file;
}
